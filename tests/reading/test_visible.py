"""Whatever a token holds, what is shown of it is printable, unambiguous where it must be, and as wide as said."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detjac_lanczos.reading.visible import columns, fit, joined, shortened, visible, wrapped

ANY_TEXT = st.text(st.characters(), max_size=30)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" only", "␣only"),
        ("\n\t\r", "↵⇥␍"),
        ("\x07", "\\x07"),
        ("\u202eevil", "\\u202eevil"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("\u0301", "◌\u0301"),
        ("", "∅"),
        ("金", "金"),
        ("\xa0", "\\xa0"),
        ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
        ("می\u200cروم", "می\u200cروم"),
        ("\u200dا\u200d", "\\u200dا\\u200d"),
        ("\u3164\u115f\u2800", "\\u3164\\u115f\\u2800"),
        ("a\u034fb", "a\\u034fb"),
        ("a\u200d\u200db", "a\\u200d\\u200db"),
    ],
)
def test_known_tokens(token: str, shown: str) -> None:
    assert visible(token) == shown


@given(ANY_TEXT)
def test_nothing_invisible_is_left(token: str) -> None:
    shown = visible(token)
    assert shown
    joined = {i + 1 for i in range(len(shown) - 2) if shown[i + 1] in "\u200c\u200d"}
    assert not any(unicodedata.category(c)[0] in "CZ" for i, c in enumerate(shown) if i not in joined)
    assert not any(unicodedata.category(shown[i + side])[0] in "CZ" for i in joined for side in (-1, 1))
    shown.encode("utf-8")


@given(ANY_TEXT, st.integers(1, 40))
def test_fitted_text_is_exactly_as_wide_as_asked(token: str, width: int) -> None:
    assert columns(fit(visible(token), width)) == width


@pytest.mark.parametrize("width", [0, -1, -30])
def test_where_there_is_no_room_at_all_an_ellipsis_is_left(width: int) -> None:
    assert fit("only", width) == "…"
    assert joined(["only", "most"], " ", width) == "…"


def test_a_text_of_any_length_is_cut_at_once() -> None:
    """In time that grows as its length does: with the square of it, these would take an hour."""
    assert fit("金 " * 100_000, 80) == "金 " * 26 + "… "
    lines = wrapped("x" * 200_000, 80)
    assert len(lines[0]) == 80 and sum(line.count("x") for line in lines) == 200_000


def test_east_asian_characters_take_two_columns_and_marks_none() -> None:
    assert columns("金門") == 4
    assert columns("Ａ") == 2
    assert columns("e\u0301") == columns("a\u20dd") == 1
    assert fit("金門大橋", 6) == "金門… "


@given(ANY_TEXT, st.integers(5, 40))
def test_shortened_text_is_no_longer_than_asked_and_whole_where_it_fits(text: str, length: int) -> None:
    found = shortened(text, length)
    assert len(found) <= length
    assert found == text or (len(text) > length and " … " in found)


def test_a_line_holds_as_much_as_it_is_wide() -> None:
    assert [joined(["ab", "cd", "e"], " ", width) for width in (4, 5, 6, 7)] == ["ab", "ab cd", "ab cd", "ab cd e"]
    assert joined(["abcdef", "g"], " ", 4) == "abc…"
    assert wrapped("ab cd efgh", 8) == ["ab cd", "    efgh"]
    assert wrapped("ab cd efgh", 7) == ["ab cd", "    efg", "    h"]

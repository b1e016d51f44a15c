"""The table says what the record says, within its width, whatever the tokens are."""

import re
from typing import Any

import pytest

from detjac_lanczos.reading import render_page, render_table
from detjac_lanczos.reading.record_values import (
    needs_advice,
    percent,
    relative_residual,
    scientific,
    significant,
    text_read,
)
from detjac_lanczos.reading.visible import columns, visible
from detjac_lanczos.runs import Run


def test_every_token_has_its_values_and_its_claim(run: Run) -> None:
    lines = render_table(run.record).splitlines()
    for token in run.record["tokens"]:
        row = next(i for i, line in enumerate(lines) if line.startswith(f"{token['index']:>3} "))
        assert [significant(value) for value in token["singular_values"]] == lines[row].split()[2:6]
        assert token["certificate"]["line"] in lines[row + 2]
        assert token["status"] in lines[row + 2]


def test_the_heading_names_the_values_that_there_are(run: Run, odd_record: dict[str, Any]) -> None:
    for record in (run.record, odd_record):
        heading = next(line for line in render_table(record).splitlines() if "stable rank" in line)
        assert [word for word in heading.split() if word.startswith("σ")] == ["σ1", "σ2", "σ3", "σ4"]
        assert heading.index("stable rank") == 17 + 4 * 8 + 3


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100.0 %"),
        (0.62, "62.0 %"),
        (0.09996, "10.0 %"),
        (0.0749, "7.49 %"),
        (0.01, "1.00 %"),
        (0.00987, "0.99 %"),
        (6e-5, "0.01 %"),
        (4e-7, "<0.01 %"),
        (0.0, "0.00 %"),
    ],
)
def test_percentages_have_even_digits(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("swept", "share"), [(21_000.0, "21 %"), (53.0, "0.05 %"), (1.0, "<0.01 %")])
def test_a_run_that_took_little_of_the_work_of_dense_did_not_take_none(run: Run, swept: float, share: str) -> None:
    record = run.record | {"work": run.record["work"] | {"row_sweeps": swept, "dense_row_sweeps": 1e5}}
    assert f" row-sweeps · {share} of dense (100,000)" in render_table(record)
    assert f"{share.replace('<', '&lt;')} <small>of a dense Jacobian" in render_page(record, run.vectors)


def test_an_earlier_position_is_told_and_the_next_token_is_not_that_of_its_output(run: Run) -> None:
    plain = render_table(run.record)
    assert "outputs are those" not in plain and "whole prompt" not in plain
    for position in (1, 1 - len(run.record["prompt_tokens"][0])):
        lines = render_table(run.record | {"options": run.record["options"] | {"position": position}}).splitlines()
        token = visible(run.record["prompt_tokens"][0][1])
        assert lines[3] == f"outputs are those at token 1, {token}"
        assert any(line.startswith("next token      after the whole prompt:  ") for line in lines)


def test_what_was_asked_is_told_whole(run: Run) -> None:
    definition = run.record["definition"] | {"target_definition": "the residual stream before the final norm " * 4}
    for model in ("tiny", "/long/path" * 20, "橋" * 90):
        record = run.record | {"definition": definition, "model": model}
        asked = render_table(record).split("\n\n")[0].split("\n")
        assert all(columns(line) <= 110 for line in asked)
        assert "".join(asked).replace(" ", "").endswith("residualstreambeforethefinalnorm")
        assert model in "".join(line.strip() for line in asked)


def test_the_energy_that_triplets_hold_is_told(run: Run) -> None:
    token = run.record["tokens"][0]
    told = render_table(run.record | {"tokens": [token | {"energy": [0.905, 0.931]}, token | {"energy": [0.9, 0.9]}]})
    assert "    held: 90.5 % to 93.1 % of |J|²\n" in told
    assert "    held: 90.0 % of |J|²\n" in told


def test_odd_tokens_stay_within_the_width(odd_record: dict[str, Any]) -> None:
    table = render_table(odd_record)
    assert all(columns(line) <= 110 for line in table.splitlines())
    assert "\x1b" not in table and "\u202e" not in table
    assert "raise max_products" in table and "not_finite" in table


def test_residuals_are_relative_to_their_value_and_to_the_first_under_the_floor() -> None:
    token: dict[str, Any] = {"singular_values": [4.0, 2.0], "residuals": [[0.4, 0.1], [0.1, 0.5]], "floor": 1.0}
    assert relative_residual(token) == pytest.approx(0.25)
    assert relative_residual(token | {"floor": 3.0}) == pytest.approx(0.125)
    assert relative_residual(token | {"singular_values": [None, None]}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(63.9312, "63.93"), (2.67, "2.670"), (0.50361, "0.5036"), (1234.4, "1234"), (3.2e-9, "3.20e-09")],
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("status", "completeness", "needed"),
    [
        ("converged", None, False),
        ("converged", {"complete": True}, False),
        ("converged", {"complete": False}, True),
        ("budget", None, True),
        ("estimate", None, False),
    ],
)
def test_advice_is_for_what_stopped_short_of_its_triplets_or_of_its_claim(
    status: str, completeness: Any, needed: bool
) -> None:
    assert needs_advice({"status": status, "certificate": {"completeness": completeness}}) is needed


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.46e-7, "5.5 × 10⁻⁷"), (3.2e12, "3.2 × 10¹²"), (0.0, "0"), (float("inf"), "–"), (None, "–")],
)
def test_powers_of_ten_keep_their_sign(value: float | None, text: str) -> None:
    assert scientific(value).replace("\u00a0", " ") == text


def test_a_text_whose_tokens_read_otherwise_is_told_by_the_tokens_up_to_the_position() -> None:
    """Tokens without the spaces between them, as some tokenizers have them, are no end of the text."""
    record = {"prompts": ["one two three"], "prompt_tokens": [["<s>", "one", "two", "three"]]}
    assert text_read(record | {"options": {"position": 1}}, 0) == "<s>one"


def test_what_a_run_has_not_measured_takes_no_room(run: Run) -> None:
    unknown = dict.fromkeys(("model_relative_error", "ordinary_relative_error", "offset_share"))
    tokens = [token | {"floor": 0.0} for token in run.record["tokens"]]
    errors = run.record["reconstructions"][0] | unknown | {"relative_error": 1e-3, "norm_error": 2e-3}
    lines = render_table(run.record | {"reconstructions": [errors], "tokens": tokens}).splitlines()
    told = lines.index("reconstruction  1.00e-03 (std/std) · 2.00e-03 (norm/norm)")
    assert lines[told + 1] == ""


def test_the_floors_of_all_tokens_are_between_two(run: Run) -> None:
    floors = (3e-6, 2e-5, 4e-6)
    tokens = [token | {"floor": floor} for token, floor in zip(run.record["tokens"], floors, strict=False)]
    assert "\nnoise floor     3.0e-06 to 2.0e-05: claims are" in render_table(run.record | {"tokens": tokens})


def test_each_figure_is_in_its_place(run: Run) -> None:
    """Of two prompts, the second one's."""
    record = dict(run.record)
    words = {side: [[{"token": f"{side}{j}"}] for j in range(4)] for side in ("left", "right")}
    token = record["tokens"][0] | words | {"stable_rank": 2.5, "stable_rank_interval": [2.0, 3.0]}
    token |= {"singular_values": [4.0, 2.0, 1.0, 0.5], "residuals": [[0.0, 0.04]] + [[0.0, 0.0]] * 3, "floor": 1e-9}
    errors = {"relative_error": 1e-3, "norm_error": 2e-3, "ordinary_relative_error": 0.75, "offset_share": 1.034}
    errors |= {"model_relative_error": 3e-3}
    record["tokens"] = [token, token | {"prompt": 1}]
    for name in ("prompts", "prompt_tokens", "predictions", "reconstructions"):
        record[name] = record[name] * 2
    record["predictions"][1] = [{"token": "said", "probability": 0.25}]
    record["reconstructions"][1] = record["reconstructions"][0] | errors
    record["work"] = record["work"] | {"row_sweeps": 1000.0, "dense_row_sweeps": 4000.0, "columns": 12, "passes": 3}
    table = render_table(record)
    first, second = table.split("“")[1:]
    assert "25.0 %" not in first and "next token      said 25.0 %" in second
    assert (
        "\nreconstruction  1.00e-03 (std/std) · 2.00e-03 (norm/norm) · 3.00e-03 (std/std, of the model's own y)\n"
        "                offset 103.4 % of y · with ordinary Jacobians 0.75\n"
        "noise floor     1.0e-09: claims are"
    ) in second
    assert "1.00e-03" not in first and "offset" not in first
    assert re.search(r"   2\.5 \[2, 3\] +1\.0e-02\n", second)
    assert re.search(r"left +left0 +right +right0\n", second)
    assert "1,000 row-sweeps · 25 % of dense (4,000) · 12 columns · 3 passes" in second
    record["tokens"] = record["tokens"][1:]
    empty, full = render_table(record).split("“")[1:]
    assert "no token of this prompt was chosen" in empty and "───" not in empty
    assert "no token" not in full and "───" in full


def test_the_error_of_a_single_entry_is_that_of_its_norm(run: Run) -> None:
    errors = run.record["reconstructions"][0] | {"relative_error": 2e-3, "norm_error": 2e-3}
    record = run.record | {"reconstructions": [errors]}
    for target, label in (("probe(1 rows)", ""), ("probe(11 rows)", "2.00e-03 (std/std) · ")):
        told = render_table(record | {"options": run.record["options"] | {"target": target}})
        assert f"\nreconstruction  {label}2.00e-03 (norm/norm)" in told


@pytest.mark.parametrize("width", [0, 80, 94, 110, 300])
def test_no_line_is_wider_than_the_terminal(run: Run, odd_record: dict[str, Any], width: int) -> None:
    for record in (run.record, odd_record):
        why = record | {"work": record["work"] | {"why": "asked for; 3 of 40 tokens polished by dense " * 4}}
        table = render_table(why, width)
        widest = max(map(columns, table.splitlines()))
        assert widest == min(max(width, 80), 110)
        assert " ".join(table.split()).count("asked for; 3 of 40 tokens polished by dense") == 4


def test_a_narrow_table_has_its_last_values_under_the_first(run: Run) -> None:
    lines = render_table(run.record | {"tokens": [wide_token(run)]}, 80).splitlines()
    row = next(i for i, line in enumerate(lines) if "stable rank" in line)
    assert [word for word in lines[row].split() if word.startswith("σ")] == ["σ1", "σ2", "σ3", "σ4"]
    assert lines[row + 1].split() == ["σ5", "σ6"]
    assert lines[row + 3].split()[2:6] == ["9.000", "8.000", "7.000", "6.000"]
    assert lines[row + 4].split() == ["5.000", "4.000"]
    assert lines[row].index("σ2") == lines[row + 1].index("σ6")
    assert lines[row + 3].index("8.000") == lines[row + 4].index("4.000")


def wide_token(run: Run) -> dict[str, Any]:
    """Return a token with more values than a narrow table has room for."""
    values = {"singular_values": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0], "residuals": [[0.0, 0.0]] * 6}
    words = {side: [[{"token": "word"}]] * 6 for side in ("left", "right")}
    return run.record["tokens"][0] | values | words | {"token": "a"}


def test_a_token_that_has_nothing_above_the_threshold_says_so(run: Run) -> None:
    none = {"singular_values": [], "residuals": [], "left": [], "right": [], "stable_rank": None, "floor": 0.0}
    told = "No singular value above 100 was found"
    token = run.record["tokens"][0] | none | {"advice": f"{told}."}
    complete = "COMPLETE: no σ above 100 (δ = 1e-6)"
    for certificate, line in (
        (None, told),
        ({"k": 0, "line": "TRIPLETS 0/0"}, told),
        ({"k": 0, "line": f"TRIPLETS 0/0 · {complete}"}, complete),
    ):
        table = render_table(run.record | {"tokens": [token | {"certificate": certificate}]})
        assert f"\n    {line} · converged\n" in table
        assert "left" not in table and "TRIPLETS" not in table

"""Tokens as text that can be seen: spaces and control characters shown, widths in terminal columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
_BLANKS = "\u034f\u115f\u1160\u2800\u3164\uffa0"
"""Letters, marks and symbols that draw nothing: the grapheme joiner, Hangul fillers, the empty Braille pattern."""
_JOINERS = "\u200c\u200d"
"""They shape the letters or emoji on both sides of them: Persian, Indic scripts, families of emoji."""


def visible(token: str) -> str:
    r"""Return a token with spaces as ␣, line ends as ↵, and every other invisible character as its \u escape.

    A joiner between two visible characters stays, a combining mark at the start gets a dotted circle to stand on; an
    empty token is ∅.
    """
    text = "".join(c if _is_seen(token, i) else _MARKS.get(c) or escaped(c) for i, c in enumerate(token))
    if text and unicodedata.category(text[0]).startswith("M"):
        text = "◌" + text
    return text or "∅"


def _is_seen(token: str, i: int) -> bool:
    if token[i] in _JOINERS and 0 < i < len(token) - 1:
        return all(unicodedata.category(token[side]) not in _INVISIBLE for side in (i - 1, i + 1))
    return unicodedata.category(token[i]) not in _INVISIBLE and token[i] not in _BLANKS


def escaped(character: str) -> str:
    r"""Return a character as \xNN, \uNNNN or \UNNNNNNNN."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns(text: str) -> int:
    """Return the columns of a text in a terminal: East-Asian wide characters two, combining marks and joiners none."""
    drawn = [c for c in text if unicodedata.category(c) not in ("Mn", "Me") and c not in _JOINERS]
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in drawn)


def _fitting(text: str, width: int) -> int:
    """Return how many characters of a text, from its beginning, ``width`` terminal columns hold."""
    taken = 0
    for count, character in enumerate(text):
        taken += columns(character)
        if taken > width:
            return count
    return len(text)


def fit(text: str, width: int) -> str:
    """Return a text cut (with an ellipsis) or filled with spaces to ``width`` terminal columns."""
    if columns(text) > width:
        text = text[: _fitting(text, width - 1)] + "…"
    return text + " " * (width - columns(text))


def wrapped(text: str, width: int) -> list[str]:
    """Return a text on lines of at most ``width`` terminal columns; a word that is longer than a line is broken."""
    lines, line, indent = [], "", " " * 4
    for word in text.split(" "):
        if line.strip() and columns(f"{line} {word}") > width:
            lines.append(line)
            line = indent
        line += f" {word}" if line.strip() else word
        while (fitting := _fitting(line, width)) < len(line):
            lines.append(line[:fitting])
            line = indent + line[fitting:]
    return [*lines, line]


def flowed(parts: Iterable[str], separator: str, width: int) -> list[str]:
    """Return whole parts on lines of at most ``width`` terminal columns each, unless a single one is longer."""
    lines: list[str] = []
    for part in parts:
        if lines and columns(longer := lines[-1] + separator + part) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def shortened(text: str, length: int) -> str:
    """Return a text whole, or words of its beginning and its end around an ellipsis, ``length`` characters at most."""
    if len(text) <= length:
        return text
    half = (length - 3) // 2
    begin, end = text[:half], text[-half:]
    return f"{begin.rpartition(' ')[0] or begin} … {end.partition(' ')[2] or end}"


def joined(parts: Iterable[str], separator: str, width: int) -> str:
    """Return as many whole parts as ``width`` terminal columns hold; of a first one that is too long, its beginning."""
    line = ""
    for part in parts:
        longer = line + separator + part if line else part
        if columns(longer) > width:
            return line or fit(part, width)
        line = longer
    return line

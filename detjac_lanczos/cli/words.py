"""Words of the command line as values, or one line on what is wrong with them."""

from __future__ import annotations

import argparse
import math
import os
import re

_MOST_TOKENS = 10_000_000


def prompt_text(text: str) -> str:
    """Return a prompt. Its bytes are UTF-8, whatever the locale took them for."""
    if not text:
        raise argparse.ArgumentTypeError("the prompt is empty, give some text")
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("the prompt is not text in UTF-8, give it in that encoding") from None


def not_blank(text: str) -> str:
    """Return the name of a model, a file, a device or a budget: anything but blanks."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty, give one")
    return text


def count(text: str) -> int:
    """Return a whole number of 1 or more."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def polish(text: str) -> int | str:
    """Return how many tokens of a survey to certify, or the word that says so."""
    return text if text in ("none", "flagged") else count(text)


def seed(text: str) -> int:
    """Return a whole number that starts random numbers."""
    if not re.fullmatch(r"\d{1,10}", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 2³² - 1")
    return int(text)


def tolerance(text: str) -> float:
    """Return a number between 0 and 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 0 and 1, such as 1e-3")
    return value


def positive(text: str) -> float:
    """Return a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number above 0")
    return value


def tokens(text: str) -> list[int]:
    """Return the indices that a list of numbers and ranges like 0,3-5 selects."""
    selected: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if not found or (found[2] and not 0 <= int(found[1]) <= int(found[2])):
            raise argparse.ArgumentTypeError(f"{text!r} selects no tokens, write for example 0,3-5")
        chosen = range(int(found[1]), int(found[2] or found[1]) + 1)
        if chosen.stop - chosen.start > _MOST_TOKENS:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} selects more tokens than any prompt has")
        selected += chosen
    return selected


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

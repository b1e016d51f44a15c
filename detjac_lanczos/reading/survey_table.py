"""The lines of a survey in the text table: one for each token, with what is claimed of it."""

from __future__ import annotations

from detjac_lanczos.reading.record_values import (
    ESTIMATE,
    Record,
    chance_of,
    left_estimated,
    percent,
    significant,
    singular_values,
)
from detjac_lanczos.reading.visible import columns, fit, joined, visible, wrapped

_TOKEN = 13
_CLAIM, _SHORT_CLAIM = 34, 15
_WIDE = 100


def survey_heading(width: int) -> str:
    """Return the heading of `survey_line`."""
    claim = f"{'claim':<{_claim_width(width)}}"
    return f"{'#':>4} {'token':<{_TOKEN}}{'σ1':>8}   {'at least, at most':<18}{'missed':>8}   {claim}u1 says"


def survey_line(token: Record, width: int) -> str:
    """Return one token: σ_1 (≈ an estimate), its interval, the missed part of ‖J‖², and the claim made of it."""
    name = f"{token['index']:>4} {fit(visible(token['token']), _TOKEN - 1)} "
    survey, values = token["survey"], singular_values(token)
    if survey is None or not values:
        beside = columns(name)
        lines = wrapped(f"{token['status']}: {token['advice']}", width - beside)
        return "\n".join((" " * beside if row else name) + line for row, line in enumerate(lines)).rstrip()
    low, high = survey["sigma_1"]
    estimated = token["status"] == ESTIMATE
    first = f"≈{significant(survey['values'][0])}" if estimated else significant(values[0])
    between = f"{significant(low)}, {significant(high)}"
    told = f"{name}{first:>8}   {between:<18}{percent(survey['share']):>8}   {_claim(token, width)}"
    words = (visible(entry["token"]) for entry in token["left"][0])
    return (told + joined(words, "  ", width - columns(told))).rstrip()


def survey_summary(tokens: list[Record]) -> list[str]:
    """Return what became of the tokens of a survey, counted, in two lines."""
    surveyed = [token["survey"] for token in tokens if token["survey"]]
    estimated = left_estimated(tokens)
    counted = f"{len(estimated)} of {len(tokens)} tokens estimated, {len(surveyed) - len(estimated)} polished"
    if not surveyed:
        return [counted]
    flags = sum(survey["flagged"] for survey in surveyed)
    left = sum(survey["flagged"] for survey in estimated)
    return [
        f"{counted}; {flags} flagged (σ1 may be 5 % off), {left} of them left",
        f"at most: with {chance_of(surveyed[0])}; missed: share of ‖J‖² outside",
    ]


def _claim_width(width: int) -> int:
    return _CLAIM if width >= _WIDE else _SHORT_CLAIM


def _claim(token: Record, width: int) -> str:
    """Return the certificate, in a narrow table its count alone; of an estimate, only whether it is flagged."""
    room = _claim_width(width)
    if token["status"] == ESTIMATE:
        flagged = "flagged" if room == _SHORT_CLAIM else "estimate, flagged"
        line = flagged if token["survey"]["flagged"] else "estimate"
    else:
        line = token["certificate"]["line"] if token["certificate"] else token["status"]
        line = line.partition(",")[0] if room == _SHORT_CLAIM else line
    return f"{fit(line, room - 2):<{room}}"

"""Values of a run's record in the form that people read, the same in the table, the figures and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from detjac_lanczos.frozen.drop import named_parts
from detjac_lanczos.reading.visible import visible
from detjac_lanczos.solvers.result import Status

Record = Mapping[str, Any]

SUCCESSFUL = tuple(status.value for status in Status if status.successful)
ESTIMATE = Status.ESTIMATE.value
NONE_ABOVE_ZERO = "No singular value above 0 was found."


def singular_values(token: Record) -> list[float]:
    """Return a token's singular values; none where the operator was refused before any was known."""
    values: list[float] = token["singular_values"]
    return [] if None in values else values


def shown_values(token: Record) -> list[float]:
    """Return a token's singular values as they are told: of an estimate, lower bounds after what σ_1 is about."""
    values = singular_values(token)
    return [*token["survey"]["values"][:1], *values[1:]] if token["status"] == ESTIMATE else values


def switched_off(record: Record) -> list[str]:
    """Return what was switched off in the network, such as "head.3.1"; nothing where it is that of the model."""
    return list(record["definition"].get("switched_off", ()))


def model_name(record: Record) -> str:
    """Return the name of the model, and what it was without."""
    off = switched_off(record)
    return f"{record['model']} without {named_parts(off)}" if off else str(record["model"])


def asked_for(record: Record) -> str:
    """Return how many triplets of each token were asked for, in words: a number, or what it follows from."""
    options = record["options"]
    if options["threshold"] is not None:
        return f"all triplets above {options['threshold']:g}"
    if options["energy"] is not None:
        return f"triplets with {percent(options['energy'])} of |J|²"
    return "1 triplet each" if options["k"] == 1 else f"{options['k']} triplets each"


def found_none(token: Record) -> bool:
    """Whether a search that went well has found that a token has no triplet of the kind that was asked for."""
    return token["status"] in SUCCESSFUL and not token["singular_values"]


def why_no_values(record: Record, prompt: int) -> str:
    """Return why there are no singular values above 0 of a prompt to show, in a sentence."""
    tokens = tokens_of(record, prompt)
    if not tokens:
        return "No token of this prompt was chosen."
    if any(map(singular_values, tokens)):
        return NONE_ABOVE_ZERO
    threshold = record["options"]["threshold"]
    return f"No singular value{'s were' if threshold is None else f' above {threshold:g} was'} found."


def claim_of(token: Record) -> str:
    """Return what is claimed of a token in one line: its certificate, or that it has no triplets."""
    certificate = token["certificate"]
    if not found_none(token):
        return certificate["line"] if certificate else "no certificate was asked for"
    completeness: str = certificate["line"].partition(" · ")[2] if certificate else ""
    return completeness or str(token["advice"]).removesuffix(".")


def is_complete(token: Record) -> bool:
    """Whether it is claimed of a token that none of the triplets that were asked for is missing."""
    return bool(((token["certificate"] or {}).get("completeness") or {}).get("complete"))


def surveyed(record: Record) -> bool:
    """Whether a run is a survey: estimates, and certificates of those tokens alone that were polished."""
    return any(token["survey"] for token in record["tokens"])


def left_estimated(tokens: Iterable[Record]) -> list[Record]:
    """Return what a survey says of those tokens that it leaves as estimates."""
    return [token["survey"] for token in tokens if token["status"] == ESTIMATE]


def chance_of(survey: Record) -> str:
    """Return the probability of a survey's upper bounds in words."""
    return f"probability {survey['confidence']:g} for all {survey['operators']} tokens at once"


def needs_advice(token: Record) -> bool:
    """Whether a token stopped short of its triplets, or of a claim of completeness."""
    claim = (token["certificate"] or {}).get("completeness")
    return token["status"] not in (*SUCCESSFUL, ESTIMATE) or (claim is not None and not claim["complete"])


def relative_residual(token: Record) -> float | None:
    """Return the largest residual of a token's triplets, relative to σ_j, or to σ_1 where σ_j is under the floor.

    A survey has not measured it.
    """
    values, floor = singular_values(token), token["floor"]
    if not values or not values[0] or None in token["residuals"][0]:
        return None
    pairs = zip(token["residuals"], values, strict=True)
    return max(max(pair) / (value if value > floor else values[0]) for pair, value in pairs)


def energy_held(token: Record) -> str | None:
    """Return the share of ‖J‖_F² that a token's triplets hold, where a share was asked for: an interval, or exact."""
    if token["energy"] is None:
        return None
    low, high = map(percent, token["energy"])
    return f"{low} of |J|²" if low == high else f"{low} to {high} of |J|²"


def has_offset(record: Record, prompt: int) -> bool:
    """Whether the output is Σ J_i x_i + r with an r that is not zero."""
    return bool(record["reconstructions"][prompt]["offset_share"])


def estimate_of(record: Record, prompt: int) -> str:
    """Return what the detached Jacobians give of the output, in words."""
    return f"{'offset r plus the ' if has_offset(record, prompt) else ''}sum over tokens of J x"


def prompt_text(record: Record, prompt: int) -> str:
    """Return a prompt on one line: its spaces kept, everything else as `visible` shows it."""
    text = record["prompts"][prompt]
    return visible("".join(record["prompt_tokens"][prompt]) if text is None else text).replace("␣", " ")


def earlier_position(record: Record, prompt: int) -> int | None:
    """Return the output position of a prompt, None where it is the last one, after which the model goes on."""
    length, asked = len(record["prompt_tokens"][prompt]), record["options"]["position"]
    position = int(asked % length)
    return None if position == length - 1 else position


def text_read(record: Record, prompt: int) -> str:
    """Return what of a prompt the output has seen, as `prompt_text` shows it: all, or its text up to the position."""
    whole, position = prompt_text(record, prompt), earlier_position(record, prompt)
    if position is None:
        return whole
    seen, rest = (
        visible("".join(part)).replace("␣", " ")
        for part in (record["prompt_tokens"][prompt][: position + 1], record["prompt_tokens"][prompt][position + 1 :])
    )
    return whole.removesuffix(rest) if whole.endswith(rest) else seen


def tokens_of(record: Record, prompt: int) -> list[Record]:
    """Return the entries of one prompt's tokens."""
    return [token for token in record["tokens"] if token["prompt"] == prompt]


def percent(share: float) -> str:
    """Return a share as a percentage, like 62.0 %, 7.49 % or <0.01 %: digits that stand under each other in a list."""
    if 0 < share < 5e-5:
        return "<0.01 %"
    return f"{100 * share:.{1 if share >= 0.09995 else 2}f} %"


def share_of_dense(work: Record) -> str:
    """Return the row-sweeps of a run by those of dense Jacobians, in whole percents; with digits where that were 0."""
    share = work["row_sweeps"] / work["dense_row_sweeps"]
    return percent(share) if share < 0.005 else f"{100 * share:.0f} %"


def scientific(value: float | None) -> str:
    """Return a small or large value like 5.5 × 10⁻⁷, in one unbreakable piece; a dash for one that is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}\u00a0×\u00a010{power}" if value else "0"


def significant(value: float, digits: int = 4) -> str:
    """Return a value with so many significant digits, like 63.93, 2.670 or 1.2e+05."""
    text = f"{value:#.{digits}g}"
    return text.rstrip(".") if "e" not in text else f"{value:.{digits - 2}e}"

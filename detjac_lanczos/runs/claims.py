"""What verification returns: every claim of a run beside what was measured again."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from detjac_lanczos.runs.record import as_plain

RECORDED_ONLY = (
    "work",
    "times",
    "choices",
    "plan",
    "created",
    "versions",
    "device",
    "advice",
    "why a method was taken",
    "how a search ended that found less than was asked for",
    "the model's name (its weights are compared), whether it was live and how it was loaded",
    "options that steer a search (block, max_products, memory)",
)
"""Parts of a record that no measurement can repeat: they are what the run wrote down."""

_NAMED = 6
_DIGITS = range(3, 18)


@dataclass(frozen=True)
class Claim:
    """One number that a run claims, measured again.

    Attributes
    ----------
    what : str
        The claim in words.
    claimed, measured : float
        In the claim's own unit.
    allowed : float
        The largest ``measured`` that bears the claim out: the claim itself and what rounding can add.
    least : float
        The smallest, where one that measures less than it claims is as wrong.
    """

    what: str
    claimed: float
    measured: float
    allowed: float
    least: float = -math.inf

    @property
    def holds(self) -> bool:
        """Whether the measurement bears the claim out; one that is not a number does not."""
        return self.least <= self.measured <= self.allowed

    def __str__(self) -> str:
        """Return the claim and its measurement in one line, with as many digits as tell them apart where it fails."""
        word, shown = ("holds", _DIGITS[:1]) if self.holds else ("FAILS", _DIGITS)
        told = [(f"{self.claimed:.{digits}g}", f"{self.measured:.{digits}g}") for digits in shown]
        claimed, measured = next((pair for pair in told if pair[0] != pair[1]), told[0])
        return f"{word}  {self.what}: claimed {claimed}, measured {measured}"


@dataclass(frozen=True, repr=False)
class Verification:
    """Every claim of a run, measured again; `RECORDED_ONLY` names what is not.

    Attributes
    ----------
    claims : list of Claim
    estimated : tuple of str
        Tokens of which a survey claims no triplets: lower bounds, and an interval of σ_1.
    notes : tuple of str
        Lines that are told and not judged: how the model was loaded, words that have changed since.
    """

    claims: list[Claim]
    estimated: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    @property
    def failed(self) -> list[Claim]:
        """Claims that do not hold."""
        return [claim for claim in self.claims if not claim.holds]

    @property
    def record(self) -> dict[str, Any]:
        """Every claim as plain data: what ``detjac verify --json`` prints."""
        claims = [asdict(claim) | {"holds": claim.holds} for claim in self.claims]
        plain: dict[str, Any] = as_plain({"ok": self.ok, "claims": claims, "recorded_only": RECORDED_ONLY})
        told = {"estimated": list(self.estimated), "notes": list(self.notes)}
        return plain | {name: lines for name, lines in told.items() if lines}

    @property
    def _count(self) -> str:
        return f"{len(self.claims) - len(self.failed)} of {len(self.claims)} claims hold"

    def __repr__(self) -> str:
        """One line: how many claims hold; ``print`` shows those that do not."""
        return f"Verification({self._count})"

    def __str__(self) -> str:
        """Return a line for each failed claim, the count, and what was not measured."""
        lines = [str(claim) for claim in self.failed]
        told = f"{self._count}; recorded, not measured again: {', '.join(RECORDED_ONLY)}"
        if self.estimated:
            more = len(self.estimated) - _NAMED
            named = ", ".join(self.estimated[:_NAMED]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"estimates, no certificates (σ_j at least the value given): {named}")
        return "\n".join([*lines, *self.notes, told])

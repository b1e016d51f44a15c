"""What a run found for one token: names for its part of the record, and its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detjac_lanczos.by_value import sent_by_value
from detjac_lanczos.reading.record_values import ESTIMATE, SUCCESSFUL
from detjac_lanczos.runs.record import certificate_from
from detjac_lanczos.solvers.certificate import Certificate
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.result import Guards
from detjac_lanczos.solvers.wording import values_in_line


@dataclass(frozen=True, repr=False)
class DecodedVector:
    """A singular vector, decoded to tokens.

    Attributes
    ----------
    candidates : list of dict
        ``token`` (exact text), ``id``, ``score`` (left: share of softmax; right: cosine) and, on the left, ``logit``.
    """

    candidates: list[dict[str, Any]]

    def __repr__(self) -> str:
        """One line: the tokens."""
        return f"DecodedVector({[token for token, _ in self.decoded]})"

    @property
    def decoded(self) -> list[tuple[str, float]]:
        """Tokens, less the blanks around them, with their scores, best first."""
        return [(entry["token"].strip() or entry["token"], entry["score"]) for entry in self.candidates]


@sent_by_value()
@dataclass(frozen=True, eq=False, repr=False)
class TokenResult:
    """What was found for one input token.

    Attributes
    ----------
    record : dict
        This token's part of the run's record.
    U, S, V : Tensor, shape (d_out, k), (k,) descending, (d_in, k)
        Signs are fixed so that u · y > 0.
    guards : Guards or None
        Further triplets that the claim of completeness rests on.
    """

    record: dict[str, Any]
    U: Tensor
    S: Tensor
    V: Tensor
    guards: Guards | None

    def __repr__(self) -> str:
        """One line: which token, its values and what is claimed of them."""
        claim = self.status if self.certificate is None else self.certificate.line
        return f"TokenResult({self.name}, {self.token!r}, S=[{values_in_line(self.S)}], {claim})"

    @property
    def prompt(self) -> int:
        """Number of the prompt."""
        return int(self.record["prompt"])

    @property
    def name(self) -> str:
        """Where the token stands, in words."""
        return f"token {self.index} of prompt {self.prompt}"

    @property
    def index(self) -> int:
        """Position in the prompt."""
        return int(self.record["index"])

    @property
    def id(self) -> int | None:
        """Token id; None where embeddings were given."""
        return self.record["id"]

    @property
    def token(self) -> str:
        """Text of the token."""
        return str(self.record["token"])

    @property
    def singular_values(self) -> list[float]:
        """σ_1 ≥ … ≥ σ_k."""
        return [float(value) for value in self.S]

    @property
    def residuals(self) -> list[list[float | None]]:
        """[ρ_R, ρ_L] of each triplet, absolute; ρ_R is None in a survey, which only estimates it."""
        return list(self.record["residuals"])

    @property
    def status(self) -> str:
        """How the solve ended: "converged" and "breakdown_exact" are successes, "estimate" and others are not."""
        return str(self.record["status"])

    @property
    def settled(self) -> bool:
        """Whether all that was asked for was done: triplets were found, or estimated where that was asked for."""
        return self.status in (*SUCCESSFUL, ESTIMATE)

    @property
    def advice(self) -> str:
        """What the status means and what to do about it; a sentence, or several."""
        return str(self.record["advice"])

    @property
    def certificate(self) -> Certificate | None:
        """What is claimed, or None where no certificate was asked for."""
        found = self.record["certificate"]
        return None if found is None else certificate_from(found)

    @property
    def survey(self) -> dict[str, Any] | None:
        """What a survey estimated: ``values``, ``residuals`` (ρ_R), ``sigma_1`` (interval), ``share`` and ``flagged``.

        See `detjac_lanczos.solvers.Missed`: the first two belong to the triplets, in their order, and need not descend.
        None where there was no survey.
        """
        return self.record["survey"]

    @property
    def estimated(self) -> bool:
        """Whether a survey is all that is known: nothing is certified."""
        return self.status == ESTIMATE

    @property
    def stable_rank(self) -> float | None:
        """Estimate of ‖J‖_F² / σ_1²."""
        return self.record["stable_rank"]

    @property
    def contribution(self) -> dict[str, float] | None:
        """``share`` ‖J_i x_i‖ / ‖y‖, ``cosine`` with y, and ``captured``: what the k triplets reproduce of J_i x_i."""
        return self.record["contribution"]

    @property
    def left(self) -> list[DecodedVector]:
        """Left vectors, decoded through the head."""
        return [DecodedVector(candidates) for candidates in self.record["left"]]

    @property
    def right(self) -> list[DecodedVector]:
        """Right vectors, decoded to the nearest input embeddings."""
        return [DecodedVector(candidates) for candidates in self.record["right"]]


def completeness_of(token: TokenResult) -> Completeness | None:
    """Return the claim of completeness that is made of a token."""
    return None if token.certificate is None else token.certificate.completeness

"""The claims of completeness of a run, made again from the random vectors that they rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.token_result import TokenResult, completeness_of
from detjac_lanczos.solvers.attempt import limits
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.reprobe import Remade, measure_completeness
from detjac_lanczos.solvers.rounding import epsilon, tells_zeros

_DIGITS = 16 * epsilon(torch.float64)


def completeness_claims(run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult], passes: int) -> Iterator[Claim]:
    """Send the recorded vectors of every probe through the operators of ``tokens`` again and compare the bounds.

    A coefficient γ_j of a probe may differ by the rounding floor c ε σ_1 √passes, hence τ and each bound by twice as
    much (they never fall when a coefficient grows, and the norm of a matrix with two coefficients in a row bounds
    both). Far above σ_1, after few steps, the polynomial of τ is τ^m / (γ_1 ⋯ γ_m) = 1/γ: τ differs by as large a part
    of itself as the geometric mean of its coefficients, for which the floor's part of σ_1 is taken, c ε √passes. Each
    bound moves by no more than τ does, and by the rounding of its own arithmetic in float64.
    """
    told = {index: claim for index, token in enumerate(tokens) if (claim := completeness_of(token)) is not None}
    if not told:
        return
    part, claims = [tokens[index] for index in told], list(told.values())
    U, S, V = ([_with_guards(token, name) for token in part] for name in "USV")
    options = run.record["options"]
    again = measure_completeness(batch.part(list(told)), U, S, V, claims, tol=options["tol"], passes=passes)
    for token, claim, fresh in zip(part, claims, again, strict=True):
        rounding = 2 * fresh.floor
        stretched = max(1.0, fresh.tau / fresh.sigma_1) if fresh.sigma_1 > 0.0 else 1.0
        slack = rounding * stretched + _DIGITS * max(fresh.tau, *fresh.upper)
        left = claim.tau - slack, claim.tau + slack
        yield Claim(f"bound of what the triplets of {token.name} leave", claim.tau, fresh.tau, left[1], left[0])
        apart = max(abs(now - was) for was, now in zip(claim.upper, fresh.upper, strict=False))
        apart = apart if len(claim.upper) == len(fresh.upper) else math.inf
        yield Claim(f"difference in the bounds of the singular values of {token.name}", 0.0, apart, slack)
        apart = abs(claim.rounding - fresh.rounding)
        yield Claim(f"difference in the rounding that the bounds of {token.name} hold", 0.0, apart, rounding)
        wrong = _contradictions(claim, fresh, token, options)
        yield Claim(f"contradictions in the claim of completeness of {token.name}", 0.0, float(wrong), 0.0)


def _with_guards(token: TokenResult, name: str) -> torch.Tensor:
    own: torch.Tensor = getattr(token, name)
    return own if token.guards is None else torch.cat([own, getattr(token.guards, name)], dim=-1)


def _contradictions(claim: Completeness, fresh: Remade, token: TokenResult, options: Mapping[str, Any]) -> int:
    """Count what does not follow from the bounds, the values and the options, as they are written."""
    k, tol, digits = claim.k, options["tol"], 4 * epsilon(token.S.dtype)
    values = _with_guards(token, "S").double()
    first, last = float(values[0]) if len(values) else fresh.sigma_1, float(values[k - 1]) if k else 0.0
    apart = digits * first if len(values) else fresh.floor  # σ_1 is measured again where no triplet holds it
    edge = last if claim.threshold is None else claim.threshold
    near = (1 - tol) * edge
    unclear = 2 * fresh.floor + digits * first
    joined = edge > claim.floor and fresh.beyond >= near + unclear
    apart_for_certain = edge <= claim.floor or fresh.beyond < near - unclear
    return sum(
        (
            claim.complete
            and (claim.delta > 0 or claim.threshold is not None)
            and not _follows(claim, fresh, values, tol, digits),
            apart_for_certain if claim.cluster else joined,
            abs(claim.sigma_1 - first) > apart,
            abs(claim.sigma_k - last) > digits * first,
            claim.threshold != options["threshold"],
            claim.seed != options["seed"],
            claim.delta not in (0, options["delta"]),
            claim.products < sum(claim.steps),
            claim.products != token.record["work"]["probe_products"],
        )
    )


def _follows(claim: Completeness, fresh: Completeness, values: torch.Tensor, tol: float, digits: float) -> bool:
    """Whether a claim is complete by its own bounds."""
    k, rounding = claim.k, min(claim.rounding, fresh.rounding + 2 * fresh.floor)
    if claim.threshold is not None:
        above = k == 0 or float(values[k - 1]) - rounding > (1 - digits) * claim.threshold
        return above and claim.upper[k] <= (1 + digits) * claim.threshold
    goals = limits(values[:k].numpy(), tol, claim.floor).tolist()
    narrow = all(bound - rounding <= (1 + digits) * goal for bound, goal in zip(claim.upper, goals, strict=False))
    last = float(values[k - 1])
    zero = last <= fresh.floor and tells_zeros(claim.floor, tol, (1 + digits) * float(values[0]))
    return narrow and (claim.tau + claim.floor < (1 + digits) * last or zero)

"""Whether a run has all values above a threshold, or all there are: fresh random vectors look for others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.reading.record_values import SUCCESSFUL
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.token_result import TokenResult, completeness_of
from detjac_lanczos.solvers.basis import dominant_rows, orthonormal_rows, project_out, random_rows, spectral_norm
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import adjoint_bound, epsilon, epsilon_at, underflow
from detjac_lanczos.solvers.streams import Stream

_WIDTH = 4
_STEPS = 4
_SMALLEST = 1e-6
"""Length of a new direction, relative to the product that it is a part of: below it there is none."""


def threshold_claims(run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult]) -> Iterator[Claim]:
    """Hold the values of ``tokens`` against the threshold, and what their triplets leave of their operators.

    A few steps of Golub and Kahan from random vectors bound C = (I - U Uᵀ) J (I - V Vᵀ) from below. J and
    U S Vᵀ + C differ by no more than the residuals do, so that a product of C above the threshold by more than these
    and the tolerance proves one value more than are stored. That there is none, no such product can prove.
    """
    threshold = run.record["options"]["threshold"]
    if threshold is None:
        return
    for token in tokens:
        under = float((token.S.double() <= threshold).sum())
        yield Claim(f"values of {token.name} that are not above the threshold", 0.0, under, 0.0)
    probed = [index for index, token in enumerate(tokens) if _rests_on_its_search(token)]
    if not probed:
        return
    part = [tokens[index] for index in probed]
    found = _left(batch.part(probed), part, run.record["options"]["seed"])
    rounding = adjoint_bound(epsilon(batch.dtype), max(batch.shapes[0]))
    for token, most in zip(part, found, strict=True):
        first = max(most, *token.singular_values, threshold)
        allowed = threshold * (1 + run.record["options"]["tol"]) + _residual(token) + rounding * first
        yield Claim(f"largest product of what the triplets of {token.name} leave", threshold, most, allowed)


def exhausted_claims(run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult]) -> Iterator[Claim]:
    """Hold what the triplets of ``tokens`` leave against zero, where these are said to be all that there is.

    It may be as long as the floor and the residuals, and what rounding makes of the longest product. A floor is a share
    of σ_1: without triplets there is none.
    """
    exact = [index for index, token in enumerate(tokens) if token.status == Status.BREAKDOWN_EXACT.value]
    if not exact:
        return
    part = [tokens[index] for index in exact]
    found = _left(batch.part(exact), part, run.record["options"]["seed"])
    rows = max(batch.shapes[0])
    for token, most in zip(part, found, strict=True):
        first = float(token.S[0]) if len(token.S) else 0.0
        floor = token.record["floor"] if len(token.S) else 0.0
        rounding = adjoint_bound(epsilon_at(batch.dtype, first, rows), rows) * first
        allowed = floor + _residual(token) + rounding + underflow(batch.dtype, first, rows)
        yield Claim(f"largest product beyond all triplets of {token.name}", 0.0, most, allowed)


def threshold_notes(run: Run) -> Iterator[str]:
    """Yield a line where all values above a threshold were asked for, with no claim of completeness for them."""
    threshold = run.record["options"]["threshold"]
    if threshold is not None and (count := sum(map(_rests_on_its_search, run.tokens))):
        yield (
            f"that {count} of {len(run.tokens)} tokens have no further value above {threshold:g} is not claimed: a few "
            "random vectors found none that large, which is no proof (certify='complete' claims it)"
        )


def _rests_on_its_search(token: TokenResult) -> bool:
    """Whether a token is said to have all triplets above a threshold on no other ground than that none was found."""
    claim = completeness_of(token)
    return token.status in SUCCESSFUL and (claim is None or not claim.complete)


def _left(batch: JacobianBatch, tokens: Sequence[TokenResult], seed: int) -> list[float]:
    """Return a lower bound of ‖C‖₂ for each operator: its norm on a block Krylov space of a few random vectors."""
    generator = Stream.THRESHOLD.generator(seed)
    left, right = ([getattr(token, name).T.to(batch.device, torch.float64) for token in tokens] for name in "UV")
    sent = right
    blocks = [random_rows(_WIDTH, rows, generator) for rows in right]
    images: list[list[Tensor]] = [[] for _ in tokens]
    for step in range(_STEPS):
        if step:
            blocks = _apply(batch.rmatmat, [image[-1] for image in images], batch.dtype)
        blocks = [_directions(block, known) for block, known in zip(blocks, sent, strict=True)]
        sent = [torch.cat(pair) for pair in zip(sent, blocks, strict=True)]
        products = _apply(batch.matmat, blocks, batch.dtype)
        for image, product, known in zip(images, products, left, strict=True):
            image.append(_outside(product, known))
    return [spectral_norm(torch.cat(image)) for image in images]


def _apply(
    product: Callable[[list[tuple[int, Tensor]]], list[Tensor]], blocks: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Send rows of every operator through it, in its precision."""
    sent = [(index, block.T.to(dtype)) for index, block in enumerate(blocks)]
    return [image.T.double() for image in product(sent)]


def _directions(rows: Tensor, known: Tensor) -> Tensor:
    """Return orthonormal rows that span what ``rows`` have outside of the orthonormal rows of ``known``."""
    room = known.shape[1] - known.shape[0]
    if not len(rows) or not room:
        return rows[:0]
    found = dominant_rows(_outside(rows, known), min(_WIDTH, room), _SMALLEST * spectral_norm(rows))
    return orthonormal_rows(_outside(found, known))


def _outside(rows: Tensor, known: Tensor) -> Tensor:
    return project_out(project_out(rows, known), known)


def _residual(token: TokenResult) -> float:
    """Return a bound of ‖J - U S Vᵀ - C‖₂: the Frobenius norms of the residuals of both sides, together."""
    residuals = [[math.inf if part is None else part for part in pair] for pair in token.residuals]
    return sum(math.hypot(*side) for side in zip(*residuals, strict=True))

"""Make claims of completeness again: the same random vectors, sent through fresh products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.solvers.attempt import seen_beyond, stated
from detjac_lanczos.solvers.basis import to_numpy
from detjac_lanczos.solvers.batch import as_batch
from detjac_lanczos.solvers.comparison import Comparison
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.dense import claim_of_spectrum
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.probe import Deflation, Probe
from detjac_lanczos.solvers.rounding import noise_floor, safe_scale


@dataclass(frozen=True)
class Remade(Completeness):
    """A claim made again; ``beyond``: the largest value that was seen beside those of the k triplets."""

    beyond: float

    @classmethod
    def adding(cls, beyond: float, claim: Completeness) -> "Remade":
        """Return a claim with what was seen, in units of the operator."""
        return cls(**vars(claim), beyond=beyond)


def measure_completeness(
    A: Any,
    U: Sequence[Tensor],
    S: Sequence[Tensor],
    V: Sequence[Tensor],
    claims: Sequence[Completeness],
    *,
    tol: float,
    passes: int,
) -> list[Remade]:
    """Return what the same probes prove and see now: one pass each way for the triplets, then the steps of each probe.

    Parameters
    ----------
    A : operator, or batch of operators
    U, S, V : sequence of Tensor, one for each operator
        Shapes (d_out, p), (p,) and (d_in, p): the k triplets claimed, then the guards.
    claims : sequence of Completeness
        Their seeds, numbers and steps say which random vectors to draw and how far to follow each. Claims with δ = 0
        rest on the whole matrix, which is written out again.
    tol : float
    passes : int
        Passes of the solve, for the noise floor.

    Returns
    -------
    list of Remade

    Raises
    ------
    OperatorError
        A product is not finite, or has the wrong shape, dtype or device.
    """
    batch = CountingBatch(as_batch(A))
    with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
        if any(claim.delta == 0.0 for claim in claims):
            return _from_matrices(batch, claims, tol, passes)
        return _from_probes(batch, U, S, V, claims, tol, passes)


def _from_matrices(batch: CountingBatch, claims: Sequence[Completeness], tol: float, passes: int) -> list[Remade]:
    fresh, comparison = [], Comparison(Materialisation(batch))
    comparison.run(claims[0].seed)
    for index, (matrix, claim) in enumerate(zip(batch.finite(comparison.matrices), claims, strict=True)):
        scale = safe_scale(matrix)
        values = torch.linalg.svdvals(matrix * scale)
        first = float(values[0])
        floor = noise_floor(batch.epsilon(index, first / scale), first, passes)
        again = claim_of_spectrum(
            values,
            claim.k,
            tol=tol,
            rounding=max(floor, comparison.distance(index) * scale, batch.underflow(index, first)),
            floor=floor,
            scale=scale,
            seed=claim.seed,
            threshold=claim.threshold,
        )
        fresh.append(Remade.adding(again.tau, again))
    return fresh


def _from_probes(
    batch: CountingBatch,
    U: Sequence[Tensor],
    S: Sequence[Tensor],
    V: Sequence[Tensor],
    claims: Sequence[Completeness],
    tol: float,
    passes: int,
) -> list[Remade]:
    lefts, rights = ([block.to(batch.device, batch.dtype).T for block in blocks] for blocks in (U, V))
    pushed = batch.finite(batch.apply(Direction.FORWARD, list(enumerate(rights))))
    pulled = batch.finite(batch.apply(Direction.TRANSPOSED, list(enumerate(lefts))))
    probes, scales, floors, underflows = [], [], [], []
    for index, claim in enumerate(claims):
        scale = safe_scale(S[index])
        values = to_numpy(S[index] * scale)
        products = pushed[index] * scale, pulled[index] * scale
        deflation = Deflation.of(values, lefts[index], rights[index], *products)
        eps = batch.epsilon(index, float(values[0]) / scale)
        floors.append(noise_floor(eps, float(values[0]), passes))
        underflows.append(batch.underflow(index, float(values[0])))
        probes.append(Probe(deflation, batch.shapes[index], eps=eps, seed=claim.seed, number=claim.number))
        scales.append(scale)
    _follow(batch, probes, scales, claims)
    fresh = []
    for probe, scale, floor, least, claim in zip(probes, scales, floors, underflows, claims, strict=True):
        again = stated(
            probe,
            k=claim.k,
            delta=claim.delta,
            tol=tol,
            floor=floor,
            underflow=least,
            scale=scale,
            threshold=claim.threshold,
        )
        fresh.append(Remade.adding(seen_beyond(probe, claim.k) / scale, again))
    return fresh


def _follow(
    batch: CountingBatch, probes: Sequence[Probe], scales: Sequence[float], claims: Sequence[Completeness]
) -> None:
    """Take the recorded steps, all operators in passes that they share."""
    direction = Direction.FORWARD
    while True:
        going = [index for index, probe in enumerate(probes) if _goes_on(probe, claims[index])]
        if not going:
            return
        turn = [(i, probe.row) for i in going if (probe := probes[i]).direction is direction and probe.row is not None]
        products = batch.finite(batch.apply(direction, turn)) if turn else []
        for (index, _), product in zip(turn, products, strict=True):
            probes[index].absorb(product.to(torch.float64) * scales[index])
        direction = direction.other


def _goes_on(probe: Probe, claim: Completeness) -> bool:
    """Whether steps are left; begins the next vector where those of the latest have been taken.

    The first vector takes one in any case: of no product there is no bound.
    """
    latest = len(probe.steps) - 1
    if probe.row is not None and len(probe.coefficients) < max(claim.steps[latest], 0 if latest else 1):
        return True
    if len(probe.steps) < len(claim.steps):
        probe.draw()
        return probe.row is not None
    return False

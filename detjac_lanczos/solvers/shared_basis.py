"""The survey method: estimates for every operator of a large batch, out of one left basis that all of them share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.basis import thin_svd
from detjac_lanczos.solvers.batch import as_batch
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.finish import Method, finish
from detjac_lanczos.solvers.missed import Cotangents, measure_missed
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status, SVDResult, Work
from detjac_lanczos.solvers.rounding import safe_scale
from detjac_lanczos.solvers.survey import STEERING_PROBES, Survey

_MEASURING_SHARE = 1 / 4
_FEWEST_PROBES = 16
MOST_PROBES = 64
_COLUMNS_AT_ONCE = 8
_SHARE_OF_DENSE = 1 / 3


def solve_shared_basis(batch: CountingBatch, options: Options, method: Method) -> list[SVDResult]:
    """Estimate the leading triplets of all operators from one left basis; see :class:`Survey` and :class:`Missed`.

    Nothing is certified, whatever ``options.certify`` says: a claim about one operator takes products of its own, which
    :func:`~detjac_lanczos.solvers.polish` makes. ρ_L is measured; ρ_R would cost a pass of each operator and is NaN.

    Raises
    ------
    InputError
        The operators have no common output space, or the budget holds no basis of k vectors.
    """
    size, probes = survey_sizes(batch.shapes, options)
    survey = Survey(batch, options, size)
    survey.run()
    cotangents = Cotangents.outside(survey.basis, probes, options.seed)
    outside = survey.pulled(cotangents.rows) if survey.fault is None else []
    products, results = survey.products, []
    for index in range(len(batch)):
        if survey.fault is None and index not in batch.nonfinite:
            measured = Products(survey.basis, products[index], outside[index], survey.scales[index])
            estimate = _estimate(batch, index, measured, cotangents, options.k, len(batch), method)
            if not batch.overflows(index, estimate.S):
                results.append(estimate)
                continue
        status = survey.fault or Status.NOT_FINITE
        results.append(finish(batch, index, None, status, method, options, seconds=batch.seconds))
    return results


def estimate_again(
    A: Any, basis: Tensor, lefts: Sequence[Tensor], *, k: int, seed: int, probes: int, operators: int
) -> list[tuple[SVDResult, Tensor]]:
    """Estimate the leading triplets of all operators from the basis of an earlier survey, in its shared rows.

    Parameters
    ----------
    A : OperatorBatch, or a sequence of operators of one output space
    basis : Tensor, shape (m, d_out)
        ``Missed.basis``, Q.
    lefts : sequence of Tensor, each (d_out, ·)
        Vectors u of each operator, such as those that it found.
    k, seed, probes, operators : int
        Those of the survey; ``probes`` and ``operators`` as in :class:`Missed`.

    Returns
    -------
    list of (SVDResult, Tensor)
        The estimates of each operator, as the survey left them up to rounding (and to signs and turns inside clusters),
        and Aᵀ QᵀQ u, (d_in, ·) float64.
    """
    batch = CountingBatch(as_batch(A))
    basis = basis.to(batch.device, batch.dtype)
    cotangents = Cotangents.outside(basis, probes, seed)
    rows = torch.cat([basis, cotangents.rows])
    with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
        passes = [batch.apply_shared(part) for part in rows.split(_COLUMNS_AT_ONCE)]
    found = []
    for index, (parts, left) in enumerate(zip(zip(*passes, strict=True), lefts, strict=True)):
        product = torch.cat(parts)
        scale = safe_scale(product)
        known, outside = (product * scale).split([len(basis), len(rows) - len(basis)])
        measured = Products(basis, known, outside, scale)
        method = Method("shared_basis", "measured again", {})
        result = _estimate(batch, index, measured, cotangents, k, operators, method)
        found.append((result, known.double().T @ (basis.double() @ left.to(basis.device).double()) / scale))
    return found


@dataclass(frozen=True, eq=False)
class Products:
    """What estimates of one operator A are made of: ``known`` is Q A and ``outside`` W A, times ``scale``.

    Shapes: basis Q (m, d_out), known (m, d_in), outside (r, d_in).
    """

    basis: Tensor
    known: Tensor
    outside: Tensor
    scale: float


def survey_sizes(shapes: Sequence[tuple[int, int]], options: Options) -> tuple[int, int]:
    """Return how many directions the budget holds, and how many random cotangents measure what they miss.

    A direction costs a column forward and one back, a probe one back. On 256 tokens of SmolLM2 a third of dense is 192
    columns: 16, 32, 48 and 64 probes leave 84, 76, 68 and 60 directions; the median of the upper bounds is 46, 14, 8.8
    and 6.5 % above σ_1, that of the lower ones 2.8, 3.0, 3.1 and 3.5 % below; 236, 175, 159 and 147 are flagged. The
    gain ends about there: a quarter measures.

    Raises
    ------
    InputError
        The operators have no common output space, or the budget holds no basis of k vectors.
    """
    heights = {d_out for d_out, _ in shapes}
    if len(heights) > 1:
        raise InputError(
            f"method 'shared_basis' needs one output space, these operators have {sorted(heights)}: solve each size "
            "by itself"
        )
    (d_out,) = heights
    steering = max(STEERING_PROBES, options.width)
    least = 2 * options.k + steering + _FEWEST_PROBES
    budget = options.max_products
    if budget is None:
        budget = max(math.floor(d_out * _SHARE_OF_DENSE), least + 2 * options.width)
    if budget < least:
        raise InputError(
            f"max_products = {budget} holds no survey for k = {options.k}: give {least} or more, or None for a third "
            "of dense"
        )
    probes = min(
        max(math.floor(budget * _MEASURING_SHARE), _FEWEST_PROBES), MOST_PROBES, budget - steering - 2 * options.k
    )
    return (budget - steering - probes) // 2, probes


def _estimate(
    batch: CountingBatch, index: int, measured: Products, cotangents: Cotangents, k: int, operators: int, method: Method
) -> SVDResult:
    known, scale = measured.known, measured.scale
    left, values, right = thin_svd(known)
    left, values, right = left[:, :k].T, values[:k], right[:k]
    rho_left = torch.linalg.vector_norm((left @ known - values[:, None] * right).double(), dim=1) / scale
    sigma = values / scale
    first, passes = float(sigma[0]), batch.passes[index]
    missed = measure_missed(
        known,
        values,
        right,
        measured.outside,
        cotangents,
        measured.basis,
        operators=operators,
        scale=scale,
        # Every product is used as it came, in a row of its own: nothing grows with the number of passes.
        floor=batch.floor(index, first, 1),
    )
    low, high = missed.sigma_1
    together = f" for all {operators} operators together" if operators > 1 else ""
    return SVDResult(
        U=(left @ measured.basis).T,
        S=sigma,
        V=right.clone().T,  # a view would keep the right vectors of the whole basis
        residuals=torch.stack([torch.full_like(rho_left, torch.nan), rho_left], dim=1),
        certificate=None,
        status=Status.ESTIMATE,
        advice=(
            f"Estimates from {len(measured.basis)} shared left vectors: values are lower bounds, σ_1 is about "
            f"{float(missed.values[0]):.4g}, at least {low:.4g} and, with probability {missed.confidence:g}{together}, "
            f"at most {high:.4g}; polish(batch, results, which=[{index}]) gives a certificate."
        ),
        work=Work(batch.forward[index], batch.transposed[index], passes, batch.row_sweeps[index], batch.seconds),
        method=method.name,
        why=method.why,
        choices=method.choices,
        floor=batch.floor(index, first, passes),
        missed=missed,
    )

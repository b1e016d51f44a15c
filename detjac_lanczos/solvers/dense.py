"""The dense method: every matrix is written out, then an ordinary SVD of each, held against the operator."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from detjac_lanczos.solvers.attempt import CompletenessClaim
from detjac_lanczos.solvers.basis import clean_zeros, thin_svd
from detjac_lanczos.solvers.chunks import turns
from detjac_lanczos.solvers.comparison import Comparison
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.energy import count_for
from detjac_lanczos.solvers.finish import Found, Method, finish
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.residuals import are_zeros
from detjac_lanczos.solvers.result import Status, SVDResult
from detjac_lanczos.solvers.room import require_room
from detjac_lanczos.solvers.rounding import epsilon, noise_floor, rounding_of, safe_scale, tells_zeros

_NEGLIGIBLE = 0.1
"""Of what a residual may be: where the mismatch of matrix and operator is less, the matrix stands for the products.

It is measured on one random unit vector. Rounding goes with the length of a product, and is alike in all directions
otherwise; for what is left of a mismatch that lies in few directions, there is the tenth. A mixture of the triplets
shows what lies along few of them.
"""


def solve_dense(batch: CountingBatch, options: Options, method: Method) -> list[SVDResult]:
    """Write out every matrix, take its SVD, and measure the leading triplets.

    Their products are those with the matrix where its mismatch is negligible for ``tol``, on a random vector (see
    :class:`Comparison`) and on a mixture of the triplets; it is part of their residuals. For the others, in half
    precision above all, one pass each way makes them, if ``max_products`` leaves it.
    """
    journaled = batch.journal is not None
    require_room(batch.shapes, batch.dtype, batch.device, decomposed=True, journaled=journaled)
    return decompose(Materialisation(batch), options, method)


def decompose(dense: Materialisation, options: Options, method: Method) -> list[SVDResult]:
    """Write out what is missing of the matrices (begun or not) and return the results of their SVDs."""
    results, batch = [], dense.batch
    comparison = Comparison(dense)
    matrices = comparison.matrices
    comparison.run(options.seed)
    wrong = comparison.contradictions(options)
    sound = [index for index in range(len(matrices)) if index not in wrong and index not in batch.nonfinite]
    leading = {index: _leading(matrices[index], options) for index in sound}
    products = _measured(comparison, {index: found for index, (found, _) in leading.items()}, options)
    wrong |= comparison.contradictions(options)
    for index in range(len(matrices)):
        found, completed, energy = None, None, None
        if index in wrong:
            status = wrong[index]
        elif index in batch.nonfinite:
            status = Status.NOT_FINITE
        else:
            found, values = products[index], leading[index][1]
            floor = _floor(batch, index, found)
            low = len(found.values) > 0 and float(found.values[-1]) <= floor
            status = Status.BREAKDOWN_EXACT if low else Status.CONVERGED
            if options.delta is not None:
                rounding = max(floor, comparison.distance(index) * found.scale, batch.underflow(index, found.first))
                completed = _completed(found, values, rounding, floor, options)
            if options.energy is not None:
                energy = _share(found, values)
        results.append(
            finish(
                batch,
                index,
                found,
                status,
                method,
                options,
                seconds=batch.seconds,
                completed=completed,
                energy=energy,
            )
        )
    return results


def _measured(comparison: Comparison, leading: Mapping[int, Found], options: Options) -> dict[int, Found]:
    """Return the triplets with products of the operators where those with the matrices are no substitute."""
    batch = comparison.batch
    mismatches: dict[int, Tensor] = {}
    sound: dict[int, Tensor] = {}
    for index, found in leading.items():
        mismatches[index] = comparison.of_triplets(index, found)
        allowed, floor = _NEGLIGIBLE * options.tol * found.values, _floor(batch, index, found)
        zeros = are_zeros(found.values, mismatches[index], floor, options.tol, found.first)
        sound[index] = (mismatches[index] <= allowed) | zeros
    for index, along in _along(comparison, leading, sound, options).items():
        mismatches[index] = mismatches[index].maximum(along)
        sound[index] = torch.zeros_like(sound[index])
    doubtful: dict[int, Tensor] = {}
    for index in leading:
        rows = (~sound[index]).nonzero().flatten()
        if 0 < 2 * len(rows) <= options.left(batch.forward[index] + batch.transposed[index]):
            doubtful[index] = rows

    def vectors(index: int) -> tuple[Tensor, Tensor]:
        return leading[index].right[doubtful[index]], leading[index].left[doubtful[index]]

    for turn in batch.both_ways({index: len(rows) for index, rows in doubtful.items()}, vectors):
        for index, pushed, pulled in turn:
            found, rows = leading[index], doubtful[index]
            pushed, pulled = pushed * found.scale, pulled * found.scale
            for known, made in ((found.right_products, pushed), (found.left_products, pulled)):
                comparison.note(index, found, float((made - known[rows]).norm(dim=1).max()))
            found.right_products[rows], found.left_products[rows] = pushed, pulled
            mismatches[index][rows] = 0.0
    return {index: replace(found, mismatch=mismatches[index]) for index, found in leading.items()}


def _along(
    comparison: Comparison, leading: Mapping[int, Found], sound: Mapping[int, Tensor], options: Options
) -> dict[int, Tensor]:
    """Return what products of sound triplets may differ by, (k,), for each operator where it is more than rounding.

    A mixture m = Σ_j w_j v_j of unit length is sent forward; one of u_j back, where the matrix was written by columns.
    Where matrix and operator differ along v_j alone, it is by ‖(A - M) m‖ / |w_j|; up to ``c ε σ_1``, that is rounding.
    The weights go as 1 / σ_j, so that a mismatch of ``tol`` shows alike along every triplet where it can be told from
    rounding, times a random number between 1 and 2 of either sign, so that mismatches seldom cancel. An operator
    without sound triplets, or whose budget is spent, is sent none.
    """
    batch, generator = comparison.batch, torch.Generator().manual_seed(options.seed)
    weights: dict[int, Tensor] = {}
    rounding: dict[int, float] = {}
    for index, found in leading.items():
        drawn = torch.rand(2, len(found.values), dtype=torch.float64, device="cpu", generator=generator)
        sizes = ((1.0 + drawn[0]) * (drawn[1] - 0.5).sign()).to(found.values.device)
        if found.first > 0.0 and sound[index].any() and options.left(batch.forward[index] + batch.transposed[index]):
            rounding[index] = rounding_of(batch.epsilon(index, found.first / found.scale), found.first)
            told = math.sqrt(len(found.values)) * rounding[index] / options.tol
            mixed = torch.where(sound[index], sizes * told / found.values.double().clamp_min(told), 0.0)
            weights[index] = mixed / mixed.norm()
    sent = {index: _checked_by(found, comparison.ways[index]) for index, found in leading.items()}
    more: dict[int, Tensor] = {}
    waiting = list(weights)
    for turn in turns([batch.costs[index] for index in waiting]):
        indices = [waiting[place] for place in turn]
        mixtures = [(index, weights[index][None].to(sent[index][0]) @ sent[index][0]) for index in indices]
        for index, product in zip(indices, comparison.against(mixtures), strict=True):
            found, known = leading[index], sent[index][1]
            expected = weights[index].to(known) @ known
            difference = float((product[0] * found.scale - expected).norm())
            comparison.note(index, found, difference)
            if difference > rounding[index]:
                more[index] = (difference / weights[index].abs()).nan_to_num(posinf=0.0)
    return more


def _checked_by(found: Found, way: Direction) -> tuple[Tensor, Tensor]:
    """Return the vectors, and their products with the matrix, that go the other way than what it was written by."""
    if way is Direction.TRANSPOSED:
        return found.right, found.right_products
    return found.left, found.left_products


def _floor(batch: CountingBatch, index: int, found: Found) -> float:
    return noise_floor(batch.epsilon(index, found.first / found.scale), found.first, batch.passes[index])


def _leading(matrix: Tensor, options: Options) -> tuple[Found, Tensor]:
    """Return the triplets asked for, and all singular values in the same units.

    A zero is told by uᵀ A v: the value that LAPACK gives it may lie above the noise floor.
    """
    scale = safe_scale(matrix)
    matrix = matrix * scale
    decomposed = thin_svd(matrix)
    found = _asked_for(matrix, *decomposed, scale, options)
    told = (found.left * found.right_products).sum(dim=1) > rounding_of(epsilon(matrix.dtype), found.first)
    if found.first > 0.0 and not told.all():
        decomposed = clean_zeros(matrix, *decomposed)
        found = _asked_for(matrix, *decomposed, scale, options)
    return found, decomposed[1]


def _asked_for(matrix: Tensor, left: Tensor, values: Tensor, right: Tensor, scale: float, options: Options) -> Found:
    k = options.k
    if options.threshold is not None:
        k = int((values.double() > options.threshold * scale).sum())
    elif options.energy is not None:
        known = values.double().cpu().numpy()
        k = min(count_for(options.energy, known, float((known**2).sum())), len(known))
    u, v = left[:, :k].T.clone(), right[:k].clone()  # views would keep all vectors of every operator
    return Found(values[:k], u, v, v @ matrix.T, u @ matrix, scale, float(values[0]))


def _share(found: Found, values: Tensor) -> tuple[float, float]:
    """Return the share of ‖A‖_F² that the triplets hold, as an interval of no width."""
    total = float(values.double().square().sum())
    share = float(found.values.double().square().sum()) / total if total > 0.0 else 1.0
    return share, share


def _completed(found: Found, values: Tensor, rounding: float, floor: float, options: Options) -> CompletenessClaim:
    claim = claim_of_spectrum(
        values,
        len(found.values),
        tol=options.tol,
        rounding=rounding,
        floor=floor,
        scale=found.scale,
        seed=options.seed,
        threshold=options.threshold,
    )
    return CompletenessClaim(claim, None)


def claim_of_spectrum(
    values: Tensor,
    k: int,
    *,
    tol: float,
    rounding: float,
    floor: float,
    scale: float,
    seed: int,
    threshold: float | None,
) -> Completeness:
    """Claim what all singular values (times ``scale``, descending) of a matrix show of the operator that it stands for.

    They are known to ``rounding`` (Weyl): what the operator may differ by from the matrix, ``floor`` at least. That the
    k leading ones are those of the operator, or that no other lies above a threshold, is claimed only where the next
    one does not reach the k-th, or the threshold, with that added.
    """
    known = [*map(float, values[: k + 1]), 0.0]
    first, last, beyond = known[0], known[k - 1] if k else 0.0, known[k]
    zero = last <= floor and tells_zeros(floor, tol, first)
    upper = [value + rounding for value in map(float, values[: k + 1])]
    return Completeness.of(
        known,
        upper if k < len(values) else [*upper, 0.0],
        k=k,
        index_exact=k == len(values) or beyond + rounding < last or zero,
        tau=beyond,
        beyond=beyond,
        rounding=rounding,
        floor=floor,
        tol=tol,
        scale=scale,
        threshold=threshold,
        seed=seed,
    )

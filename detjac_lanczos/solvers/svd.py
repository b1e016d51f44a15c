"""The two front doors: ``svd`` of one operator and ``svd_batch`` of many."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.budget import Memory, read_memory
from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.auto import solve_auto, solve_uncounted
from detjac_lanczos.solvers.batch import as_batch
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.decisions import Decisions
from detjac_lanczos.solvers.dense import solve_dense
from detjac_lanczos.solvers.finish import Method
from detjac_lanczos.solvers.journal import open_journal
from detjac_lanczos.solvers.lanczos import solve_lanczos
from detjac_lanczos.solvers.memory import basis_capacity
from detjac_lanczos.solvers.options import (
    Callback,
    Certify,
    Options,
    SearchMethod,
    check_fit,
    check_options,
    default_k,
    require_blocks,
)
from detjac_lanczos.solvers.randomized import solve_randomized
from detjac_lanczos.solvers.result import SVDResult
from detjac_lanczos.solvers.shared_basis import solve_shared_basis, survey_sizes
from detjac_lanczos.solvers.start import read_start

_SOLVERS = {
    "lanczos": solve_lanczos,
    "randomized": solve_randomized,
    "dense": solve_dense,
    "shared_basis": solve_shared_basis,
}


def svd(
    A: Any,
    k: int | None = None,
    *,
    threshold: float | None = None,
    energy: float | None = None,
    tol: float = 1e-3,
    method: SearchMethod = "auto",
    block: int | None = None,
    max_products: int | None = None,
    start: Tensor | np.ndarray | None = None,
    seed: int = 0,
    certify: Certify | None = "triplets",
    delta: float = 1e-6,
    choices: dict[str, Any] | None = None,
    memory: Memory | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
) -> SVDResult:
    """Find the k leading singular triplets of a linear operator, with measured residuals.

    Parameters
    ----------
    A : LinearOperator, Tensor, scipy LinearOperator or matrix
        Real, of shape (d_out, d_in).
    k : int, optional
        Triplets wanted; by default 8, or the smaller side where that is less.
    threshold : float, optional
        In place of k: all triplets with singular values above it. The search grows until the first value below it is
        known to a fiftieth of its distance, or to ``tol``: one above it by less than ``tol`` may count as below.
        How many there are is not known beforehand, nor with ``energy``: "auto" searches by Lanczos until all operators
        together have taken the row-sweeps of dense, and changes over to that. It stays with Lanczos where
        ``max_products`` or ``start`` is given, or memory does not hold the matrices.
    energy : float, optional
        In place of k: as many triplets as hold this share of ‖A‖_F². ‖A‖_F² is known from the products of the search
        and from 16 random cotangents for what they leave, as an interval of 95 % whose upper end is taken (exact where
        the matrix is written out); see ``SVDResult.energy``. The interval allows for a search that stops by it: it
        missed the share in up to 4.4 % of the solves where all values are equal and few, and in 0.5 % or less of other
        ones.
    tol : float
        Bound on max(ρ_R, ρ_L) / σ_j of every triplet.
    method : {"auto", "lanczos", "randomized", "dense", "shared_basis"}
        "shared_basis" is the survey of a long prompt: estimates for every operator of a batch from one left basis, in a
        third of the rows of dense; it certifies nothing, see :func:`polish`.
    block : int, optional
        Width of the Lanczos blocks. By default 3, or up to 8 where a pass costs more than its columns (weights read
        from a disk, say): a second pass that takes 0.5 s or more is followed by one of a single column, which shows
        it, and what is chosen is in ``SVDResult.choices``. Width 1 misses values. Other methods have no blocks and
        refuse it.
    max_products : int, optional
        Columns both ways that may be spent on each operator, those that a ``checkpoint`` is held against not counted.
    start : Tensor or ndarray, shape (d_in, w), optional
        Right vectors to begin with, such as those of a neighbouring operator, of any length and rank. If they are
        nearly exact, the search stops almost at once and may miss triplets outside their span; certify="complete"
        checks for those. "auto" does without them where it writes the matrix out.
    seed : int
        Seeds everything random: from 0 to 2³² - 1, as torch's generators hold 32 bits.
    certify : {"triplets", "complete", None}
        "complete" adds probes to "triplets": fresh random vectors in what the triplets leave, which bound every value
        that was missed. Up to 24 products, or 0.6 of those of the search where that is expected to show that the
        triplets are those of σ_1, …, σ_k; with ``max_products``, what it leaves.
    delta : float
        Probability over the probes, for each operator, that the claim "complete" makes is wrong.
    choices : dict, optional
        ``SVDResult.choices`` of an earlier solve, to repeat its decisions instead of timing again.
    memory : int, float or str, optional
        Bytes, or a text such as "2GiB", for the Lanczos bases of the whole batch and their products. Where they would
        not fit, the search restarts from its best vectors, which takes more passes. Probes of certify="complete" are
        held besides: room for 32 vectors of each side of every operator and their products, and the triplets that are
        deflated, in float64; then matrices of order 4 (k + 6), for one operator at a time, in 400 (k + 6)² bytes. Other
        methods hold more than bases and refuse it.
    checkpoint : path, optional
        A folder in which every pass is written down as it is made. The same call with the same folder goes on where an
        earlier one was cut off, and gives the same result bit for bit; it sends each operator one column more, to see
        that it is still the same, which is not counted as work. It may be deleted once there is a result.
    callback : callable, optional
        Called with a :class:`Progress` after every pass, before the next one begins; what it raises ends the solve.

    Returns
    -------
    SVDResult
        Within ``torch.inference_mode()`` its tensors are inference tensors, which autograd refuses: clone them outside.

    Raises
    ------
    InputError
        An option or the operator cannot be used.
    OperatorError
        A product has the wrong shape, dtype or device.
    RunFileError
        A file in ``checkpoint`` is damaged, or one of its passes cannot be read as memory or file descriptors run out.
    """
    operators = as_batch(A)
    if len(operators.shapes) != 1:
        raise InputError(f"svd solves one operator, these are {len(operators.shapes)}: give them to svd_batch")
    return svd_batch(
        operators,
        k,
        threshold=threshold,
        energy=energy,
        tol=tol,
        method=method,
        block=block,
        max_products=max_products,
        start=None if start is None else [start],
        seed=seed,
        certify=certify,
        delta=delta,
        choices=choices,
        memory=memory,
        checkpoint=checkpoint,
        callback=callback,
    )[0]


def svd_batch(
    batch: Any,
    k: int | None = None,
    *,
    threshold: float | None = None,
    energy: float | None = None,
    tol: float = 1e-3,
    method: SearchMethod = "auto",
    block: int | None = None,
    max_products: int | None = None,
    start: Sequence[Tensor | np.ndarray] | None = None,
    seed: int = 0,
    certify: Certify | None = "triplets",
    delta: float = 1e-6,
    choices: dict[str, Any] | None = None,
    memory: Memory | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
) -> list[SVDResult]:
    """Find the k leading singular triplets of every operator of a batch, in lockstep.

    Parameters
    ----------
    batch : OperatorBatch, or a sequence of what :func:`svd` takes
    k : int, optional
        Triplets wanted of every operator; by default 8, or as many as the smallest of them has.
    threshold, energy, tol, method, block, max_products
        As in :func:`svd`.
    start : sequence of Tensor or ndarray, each (d_in, w), optional
        For each operator, as in :func:`svd`.
    seed, certify, delta, choices, memory, checkpoint, callback
        As in :func:`svd`.

    Returns
    -------
    list of SVDResult
        One for each operator; each as :func:`svd` alone would find it with this ``k``, up to rounding.

    Raises
    ------
    InputError
        An option or an operator cannot be used, or no operator is given.
    OperatorError
        A product has the wrong shape, dtype or device.
    RunFileError
        A file in ``checkpoint`` is damaged, or one of its passes cannot be read as memory or file descriptors run out.
    """
    operators = as_batch(batch)
    decisions = Decisions.of(choices, method=method, block=block, bounded=memory is not None)
    wanted = default_k(operators.shapes) if k is None else k
    check_options(
        k=wanted if threshold is None and energy is None else k,
        threshold=threshold,
        energy=energy,
        tol=tol,
        method=decisions.method,
        block=decisions.block,
        max_products=max_products,
        seed=seed,
        certify=certify,
        delta=delta,
        callback=callback,
    )
    require_blocks(block, method)
    check_fit(operators, k=k, method=decisions.method, max_products=max_products)
    blocks = read_start(start, operators.shapes, method=method)
    if memory is not None and (decisions.method != "lanczos" or threshold is not None or energy is not None):
        raise InputError("memory bounds the bases of method 'lanczos' for a given k: choose both, or give no memory")
    width = min(decisions.width, max(map(max, operators.shapes)))
    begun = 0 if blocks is None else max(given.shape[1] for given in blocks)
    options = Options(
        k=int(wanted),
        tol=float(tol),
        width=width,
        later=decisions.later,
        timed=decisions.block is None and max_products is None and memory is None and start is None,
        max_products=None if max_products is None else int(max_products),
        seed=int(seed),
        start=blocks,
        certify=certify,
        delta=float(delta) if certify == "complete" else None,
        threshold=None if threshold is None else float(threshold),
        energy=None if energy is None else float(energy),
        capacity=basis_capacity(memory, operators.shapes, operators.dtype, k=int(wanted), width=width, start=begun),
    )
    if decisions.method == "shared_basis":
        survey_sizes(operators.shapes, options)  # what it refuses is to leave no checkpoint behind
    given = {
        "method": method,
        "block": None if block is None else int(block),
        "memory": read_memory(memory),
        "choices": decisions.given,
    }
    with torch.no_grad(), torch.autocast(torch.device(operators.device).type, enabled=False):
        journal = open_journal(checkpoint, operators, options, **given)
        counted = CountingBatch(operators, journal, callback)
        results = _solve(counted, options, decisions)
        counted.reporter.take_results(results)
        counted.report()
        return results


def _solve(counted: CountingBatch, options: Options, decisions: Decisions) -> list[SVDResult]:
    method, why = decisions.method, "as chosen before" if "method" in decisions.given else "asked for"
    if method == "auto" and options.counted:
        return solve_auto(counted, options)
    if method == "auto" and options.max_products is None and options.start is None:
        return solve_uncounted(counted, options)
    if method == "auto":
        method, why = "lanczos", "the number of triplets is not known beforehand"
    made: dict[str, Any] = {"method": method, "block": options.width} if method == "lanczos" else {"method": method}
    return _SOLVERS[method](counted, options, Method(method, why, decisions.given | made))

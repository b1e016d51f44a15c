"""From estimates to claims: chosen operators of a survey are searched on their own, from the survey's vectors."""

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, Literal

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.batch import Subset, as_batch
from detjac_lanczos.solvers.options import is_whole
from detjac_lanczos.solvers.result import SVDResult, check_results
from detjac_lanczos.solvers.svd import svd_batch


def flagged(results: Sequence[SVDResult]) -> list[int]:
    """Return the operators whose σ_1 a survey may have estimated wrong by more than 5 %; see :class:`Missed`.

    Parameters
    ----------
    results : sequence of SVDResult
        Of ``svd_batch(batch, method="shared_basis")``.

    Returns
    -------
    list of int
        Indices into ``results``, in order; those that are certified already are left out.

    Raises
    ------
    InputError
        If ``results`` are no results of a solve.
    """
    check_results(results)
    return [index for index, result in enumerate(results) if result.missed is not None and result.missed.flagged]


def worst(results: Sequence[SVDResult], count: int) -> list[int]:
    """Choose the operators whose σ_1 a survey may have estimated worst.

    Parameters
    ----------
    results : sequence of SVDResult
        Of ``svd_batch(batch, method="shared_basis")``.
    count : int
        How many, 0 or more.

    Returns
    -------
    list of int
        Indices into ``results``, the worst first; those that are certified already are left out.

    Raises
    ------
    InputError
        If ``results`` are no results of a solve, or ``count`` is no number of them.
    """
    check_results(results)
    if not is_whole(count) or count < 0:
        raise InputError(f"count = {count!r} is no number of operators: give a whole number of 0 or more")
    doubts = {index: result.missed.doubt for index, result in enumerate(results) if result.missed is not None}
    return sorted(doubts, key=doubts.__getitem__, reverse=True)[:count]


def polish(
    batch: Any,
    results: Sequence[SVDResult],
    which: Sequence[int] | None = None,
    *,
    tol: float = 1e-3,
    method: Literal["auto", "lanczos"] = "auto",
    **options: Any,
) -> list[SVDResult]:
    """Bring chosen results of a survey to full certification, in lockstep, by sweeps of bounded size.

    The search goes on from the vectors that the survey found; where the chosen ones are so many that writing all
    matrices out in shared rows takes less, that is done ("auto").

    Parameters
    ----------
    batch : OperatorBatch, or a sequence of operators
        What ``results`` belong to.
    results : sequence of SVDResult
        Of ``svd_batch(batch, method="shared_basis")``, one for each operator.
    which : sequence of int, optional
        Operators to polish; by default those that the survey flagged.
    tol : float
        Bound on max(ρ_R, ρ_L) / σ_j of every triplet.
    method : {"auto", "lanczos"}
    **options
        Further options of :func:`~detjac_lanczos.solvers.svd_batch`, such as ``certify`` and ``max_products``; ``k``
        and ``start`` are those of the survey.

    Returns
    -------
    list of SVDResult
        One for each operator of the batch: new ones for those chosen, the given ones for all others.

    Raises
    ------
    InputError
        The results do not fit the batch, an operator is chosen that has no result to begin with, or an option of what
        is solved cannot be used: ``k`` and ``start`` never.
    TypeError
        There is no such option.
    """
    if taken := [name for name in ("k", "start") if name in options]:
        raise InputError(f"polish takes k and start from the survey: leave {' and '.join(taken)} out, or use svd_batch")
    if unknown := [name for name in options if name not in signature(svd_batch).parameters]:
        raise TypeError(f"polish() got an unexpected keyword argument {unknown[0]!r}")
    operators = as_batch(batch)
    check_results(results)
    if len(results) != len(operators.shapes):
        raise InputError(
            f"{len(results)} results for {len(operators.shapes)} operators: give those of a survey of this batch"
        )
    numbers = f"which = {which!r} must hold the numbers of operators, 0 to {len(results) - 1}"
    if which is not None and not isinstance(which, Iterable):
        raise InputError(numbers)
    chosen = flagged(results) if which is None else list(which)
    if not all(is_whole(index) for index in chosen):
        raise InputError(numbers)
    for index in chosen:
        if not 0 <= index < len(results) or not bool(results[index].V.isfinite().all()):
            raise InputError(f"operator {index} has no result to begin with: choose among those that were estimated")
    polished = list(results)
    if chosen:
        found = svd_batch(
            Subset(operators, chosen),
            len(results[chosen[0]].S),
            tol=tol,
            method=method,
            start=[results[index].V for index in chosen],
            **options,
        )
        for index, result in zip(chosen, found, strict=True):
            polished[index] = result
    return polished

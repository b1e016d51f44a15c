"""The two front doors: ``svd`` of one operator and ``svd_batch`` of many."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detjac_lanczos.solvers.batch import as_batch
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.dense import solve_dense
from detjac_lanczos.solvers.finish import Road
from detjac_lanczos.solvers.lanczos import solve_lanczos
from detjac_lanczos.solvers.options import Callback, Options, check_options
from detjac_lanczos.solvers.randomized import solve_randomized
from detjac_lanczos.solvers.result import SVDResult

_DEFAULT_WIDTH = 2


def svd(
    A: Any,
    k: int = 8,
    *,
    tol: float = 1e-3,
    method: str = "auto",
    block: int | None = None,
    max_products: int | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    certify: str | None = "triplets",
    choices: dict[str, Any] | None = None,
    callback: Callback | None = None,
) -> SVDResult:
    """Find the k leading singular triplets of a linear operator, with measured residuals.

    Parameters
    ----------
    A : LinearOperator, Tensor, scipy LinearOperator or matrix
        Real, of shape (d_out, d_in).
    k : int
        Triplets wanted.
    tol : float
        Bound on max(ρ_R, ρ_L) / σ_j of every triplet.
    method : {"auto", "lanczos", "randomized", "dense"}
    block : int, optional
        Width of the Lanczos blocks; by default 2 or more. Width 1 misses values.
    max_products : int, optional
        Columns both ways that may be spent.
    start : Tensor, shape (d_in, w), optional
        Right vectors to begin with, such as those of a neighbouring operator.
    seed : int
        Seeds everything random.
    certify : {"triplets", None}
    choices : dict, optional
        ``SVDResult.choices`` of an earlier solve, to repeat its decisions instead of timing again.
    callback : callable, optional
        Called with a :class:`Progress` after every pass.

    Returns
    -------
    SVDResult

    Raises
    ------
    InputError
        An option or the operator cannot be used.
    OperatorError
        A product has the wrong shape, dtype or device.
    """
    return svd_batch(
        as_batch(A),
        k,
        tol=tol,
        method=method,
        block=block,
        max_products=max_products,
        start=None if start is None else [start],
        seed=seed,
        certify=certify,
        choices=choices,
        callback=callback,
    )[0]


def svd_batch(
    batch: Any,
    k: int = 8,
    *,
    tol: float = 1e-3,
    method: str = "auto",
    block: int | None = None,
    max_products: int | None = None,
    start: Sequence[Tensor] | None = None,
    seed: int = 0,
    certify: str | None = "triplets",
    choices: dict[str, Any] | None = None,
    callback: Callback | None = None,
) -> list[SVDResult]:
    """Find the k leading singular triplets of every operator of a batch, in lockstep.

    Parameters
    ----------
    batch : OperatorBatch, or a sequence of what :func:`svd` takes
    start : sequence of Tensor, each (d_in, w), optional

    Returns
    -------
    list of SVDResult
        One for each operator; each as :func:`svd` alone would find it, up to rounding.

    See Also
    --------
    svd : the other options.
    """
    operators = as_batch(batch)
    check_options(
        operators.shapes,
        k=k,
        tol=tol,
        method=method,
        block=block,
        max_products=max_products,
        start=start,
        certify=certify,
    )
    counted = CountingBatch(operators)
    options = Options(
        k=k,
        tol=tol,
        width=block if block is not None else _DEFAULT_WIDTH,
        max_products=max_products,
        seed=seed,
        start=start,
        callback=callback,
        choices=choices or {},
    )
    certified = certify is not None
    if method == "dense":
        return solve_dense(counted, options, Road("dense", "asked for", {"method": "dense"}), certify=certified)
    if method == "randomized":
        road = Road("randomized", "asked for", {"method": "randomized"})
        return solve_randomized(counted, options, road, certify=certified)
    road = Road("lanczos", "block Golub-Kahan in lockstep", {"method": "lanczos", "block": options.width})
    return solve_lanczos(counted, options, road, certify=certified)

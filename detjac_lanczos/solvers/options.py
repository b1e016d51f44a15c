"""The options that every road to singular triplets shares, checked once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from detjac_lanczos.errors import InputError

METHODS = ("auto", "lanczos", "randomized", "dense")


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each pass.

    Attributes
    ----------
    passes : int
        Sweeps so far.
    row_sweeps : float
        Rows sent through all layers so far, all operators together.
    finished, operators : int
        Operators that are done, and how many there are.
    values, residuals : list of ndarray
        Current values (k,) of each operator and their relative residuals (k,); empty before there are any.
    """

    passes: int
    row_sweeps: float
    finished: int
    operators: int
    values: list[np.ndarray]
    residuals: list[np.ndarray]


Callback = Callable[[Progress], None]


@dataclass(frozen=True)
class Options:
    """Checked options of :func:`~detjac_lanczos.solvers.svd`; ``width`` is the block width."""

    k: int
    tol: float
    width: int
    max_products: int | None = None
    seed: int = 0
    start: Sequence[Tensor] | None = None
    callback: Callback | None = None


def check_options(
    shapes: Sequence[tuple[int, int]],
    *,
    k: int,
    tol: float,
    method: str,
    block: int | None,
    max_products: int | None,
    start: Sequence[Tensor] | None,
    certify: str | None,
) -> None:
    """Raise :class:`InputError` for options that no solve can honour."""
    smallest = min(min(shape) for shape in shapes)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= smallest:
        raise InputError(f"k = {k!r} cannot be found: give a whole number from 1 to {smallest}, the smaller dimension")
    if not (math.isfinite(tol) and 0 < tol < 1):
        raise InputError(f"tol = {tol} is no tolerance: give a number between 0 and 1, such as 1e-3")
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if block is not None and block < 1:
        raise InputError(f"block = {block} is no width: give 1 or more, or None to let the solver choose")
    if max_products is not None and max_products < 2 * k:
        raise InputError(f"max_products = {max_products} cannot hold k = {k} triplets: give {2 * k} or more, or None")
    needed = max(shape[0] for shape in shapes) + 1
    if method == "dense" and max_products is not None and max_products < needed:
        raise InputError(f"method 'dense' needs {needed} products, max_products allows {max_products}: choose 'auto'")
    if certify not in ("triplets", None):
        raise InputError(f"unknown certificate {certify!r}: choose 'triplets' or None")
    if start is None:
        return
    if len(start) != len(shapes):
        raise InputError(f"start holds {len(start)} blocks for {len(shapes)} operators: give one for each")
    for index, (vectors, (_, d_in)) in enumerate(zip(start, shapes, strict=True)):
        if vectors.ndim != 2 or vectors.shape[0] != d_in or not bool(vectors.isfinite().all()):
            raise InputError(
                f"start block {index} has shape {tuple(vectors.shape)}: give finite right vectors of shape ({d_in}, w)"
            )

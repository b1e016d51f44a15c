"""The options that all methods share, checked once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.operator import Direction, OperatorBatch
from detjac_lanczos.solvers.sides import writing_ways

SearchMethod = Literal["auto", "lanczos", "randomized", "dense", "shared_basis"]
Certify = Literal["triplets", "complete"]
METHODS: tuple[SearchMethod, ...] = get_args(SearchMethod)
CERTIFICATES: tuple[Certify | None, ...] = (*get_args(Certify), None)
DEFAULT_K = 8
DEFAULT_WIDTH = 3
ENERGY_PROBES = 16
_SEEDS = 2**32
SMALLEST_DELTA = 1e-12
_UNBOUNDED = 2**62


@dataclass(frozen=True, eq=False)
class Progress:
    """What a callback sees after each pass.

    Attributes
    ----------
    passes : int
        Sweeps so far.
    products : int
        Columns sent both ways so far, all operators together.
    row_sweeps : float
        Rows sent through all layers so far, all operators together.
    finished, operators : int
        Operators that are done, and how many there are.
    values, residuals : list of ndarray
        Latest values (k,) of each operator and their relative residuals (k,); empty where none are known yet: a matrix
        that is written out has them at the end, and a survey measures no residuals.
    """

    passes: int
    products: int
    row_sweeps: float
    finished: int
    operators: int
    values: list[np.ndarray]
    residuals: list[np.ndarray]


Callback = Callable[[Progress], object]


@dataclass(frozen=True, eq=False)
class Options:
    """Checked options of :func:`~detjac_lanczos.solvers.svd`; ``capacity`` is the most vectors of a Lanczos basis.

    ``width`` is the width of the first block each way, and of all others unless ``later`` names another one; ``timed``
    lets the price of the second pass choose that. ``certify`` is what to claim, None for nothing; ``delta`` is the
    chance that the claim of completeness may be wrong, None where it is not asked for. With ``threshold`` or
    ``energy``, ``k`` is only where the search begins.
    """

    k: int
    tol: float
    width: int
    later: int | None
    timed: bool
    max_products: int | None
    seed: int
    start: Sequence[Tensor] | None
    certify: str | None
    delta: float | None
    threshold: float | None
    energy: float | None
    capacity: int | None

    @property
    def counted(self) -> bool:
        """Whether the number of triplets is given, and not found on the way."""
        return self.threshold is None and self.energy is None

    @property
    def first_direction(self) -> Direction:
        """Where a search begins: given right vectors go forward, random cotangents through the transpose.

        Operators of a batch can share the latter.
        """
        return Direction.TRANSPOSED if self.start is None else Direction.FORWARD

    def left(self, spent: int) -> int:
        """Products that the budget leaves after so many; more than any solve takes where there is none."""
        return _UNBOUNDED if self.max_products is None else max(self.max_products - spent, 0)


def check_options(
    *,
    k: int | None,
    threshold: float | None = None,
    energy: float | None = None,
    tol: float,
    method: str,
    block: int | None,
    max_products: int | None,
    seed: int,
    certify: str | None,
    delta: float,
    callback: Callback | None,
) -> None:
    """Raise :class:`InputError` for options that no solve of any operator can honour."""
    _check_goal(k, threshold, energy, method)
    check_tol(tol)
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    check_block("block", block)
    held = k or 1
    least = 2 * held + (ENERGY_PROBES if energy is not None else 0)
    if max_products is not None and not is_whole(max_products):
        raise InputError(f"max_products = {max_products!r} counts no products: give a whole number, or None")
    if max_products is not None and max_products < least:
        triplets = "one triplet" if k is None else f"k = {k} triplets"
        raise InputError(f"max_products = {max_products} cannot hold {triplets}: give {least} or more, or None")
    check_seed(seed)
    if certify not in CERTIFICATES:
        raise InputError(f"unknown certificate {certify!r}: choose 'triplets', 'complete' or None")
    if not is_number(delta) or not SMALLEST_DELTA <= delta < 1:
        raise InputError(f"delta = {delta!r} is no chance of a wrong claim: give one from 1e-12 to 1, such as 1e-6")
    if certify == "complete" and method in ("randomized", "shared_basis"):
        raise InputError(f"method {method!r} cannot take up what probes find: choose 'lanczos', 'dense' or 'auto'")
    if callback is not None and not callable(callback):
        raise InputError(f"callback = {callback!r} cannot be called: give a function of one argument, or None")


def check_tol(tol: float) -> None:
    """Raise :class:`InputError` for what is no tolerance."""
    if not is_number(tol) or not 0 < tol < 1:
        raise InputError(f"tol = {tol!r} is no tolerance: give a number between 0 and 1, such as 1e-3")


def check_seed(seed: int) -> None:
    """Raise :class:`InputError` for what is no seed."""
    if not is_whole(seed) or not 0 <= seed < _SEEDS:
        raise InputError(
            f"seed = {seed!r} is no seed: torch's generators hold 32 bits, give a whole number from 0 to 2³² - 1"
        )


def check_block(name: str, width: int | None) -> None:
    """Raise :class:`InputError` for a block width that is none."""
    if width is not None and (not is_whole(width) or width < 1):
        raise InputError(f"{name} = {width!r} is no width: give 1 or more, or None to let the solver choose")


def require_blocks(block: int | None, method: str) -> None:
    """Raise :class:`InputError` for a block width beside a method that was asked for and has no blocks."""
    if block is not None and method not in ("auto", "lanczos"):
        raise InputError(f"block is the width of Lanczos blocks, and method {method!r} has none: leave it out")


def _check_goal(k: int | None, threshold: float | None, energy: float | None, method: str) -> None:
    given = [name for name, value in (("k", k), ("threshold", threshold), ("energy", energy)) if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given: each says how many triplets to find, give one of them")
    if k is not None and (not is_whole(k) or k < 1):
        raise InputError(f"k = {k!r} is no number of triplets: give a whole number of 1 or more")
    bound = _as_float(threshold) if is_number(threshold) else math.nan
    if threshold is not None and not 0 < bound < math.inf:
        shown = bound if is_number(threshold) else threshold
        raise InputError(f"threshold = {shown!r} is no bound of singular values: give a finite number above 0")
    if energy is not None and (not is_number(energy) or not 0 < energy < 1):
        raise InputError(f"energy = {energy!r} is no share of |A|_F²: give a number between 0 and 1, such as 0.9")
    if method in ("randomized", "shared_basis") and given and "k" not in given:
        raise InputError(f"method {method!r} finds a given number of triplets: give k, or choose 'lanczos' or 'dense'")


def default_k(shapes: Sequence[tuple[int, int]]) -> int:
    """Return how many triplets to find where no number is given: 8, or the smallest side of these shapes."""
    return max(min(DEFAULT_K, *map(min, shapes)), 1)


def check_k(shapes: Sequence[tuple[int, int]], k: int | None) -> None:
    """Raise :class:`InputError` for more triplets than operators of these shapes have."""
    smallest = min(min(shape) for shape in shapes)
    if smallest < 1:
        raise InputError(f"an operator of shape {min(shapes, key=min)} has no singular values: give one with 1 or more")
    if k is not None and k > smallest:
        raise InputError(f"k = {k!r} cannot be found: give a whole number from 1 to {smallest}, the smaller dimension")


def check_fit(batch: OperatorBatch, *, k: int | None, method: str, max_products: int | None) -> None:
    """Raise :class:`InputError` for options that these operators cannot honour."""
    check_k(batch.shapes, k)
    if method != "dense" or max_products is None:
        return
    costs = [batch.cost(index) for index in range(len(batch.shapes))]
    ways, _ = writing_ways(batch.shapes, costs, batch.shared_cost())
    sides = [shape[way is Direction.FORWARD] for way, shape in zip(ways, batch.shapes, strict=True)]
    needed = max(sides) + 2  # the rows or columns, a random vector and a mixture
    if max_products < needed:
        raise InputError(
            f"method 'dense' needs {needed} products, max_products allows {max_products}: choose 'lanczos'"
        )


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, numpy's included; True is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a real number, numpy's included; True is none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    """Return a number as a float; one that is larger than any, as whole numbers may be, is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf

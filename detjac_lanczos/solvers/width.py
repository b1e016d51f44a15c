"""How wide blocks should be: what columns and passes a search is expected to take, and what each costs."""

import math

MEASURED_FROM = 0.5
"""Seconds of a pass from which on it is worth a further pass of one column to learn what makes it slow."""

_WIDEST = 8
_WORTH_CHANGING = 0.9
_ALIKE = 1.5
_MORE_PASSES = 3.0


def expected_columns(k: int, tol: float, width: int, shape: tuple[int, int]) -> float:
    """Return the columns both ways that block Golub-Kahan is expected to need.

    A fit to the detached Jacobians of SmolLM2-135M, k from 1 to 32, tol from 1e-2 to 1e-5, width from 1 to 8: within a
    fifth of the mean there.
    """
    digits = max(math.log10(1e-3 / tol), -2.0)
    columns = 11.0 * k**0.75 * (1.0 + 0.1 * digits) * (1.0 + 0.09 * (width - 2))
    return float(min(columns, sum(shape)))


def expected_room(k: int, tol: float, width: int, shape: tuple[int, int]) -> int:
    """Return the vectors that each basis of a search has room for from the start: few searches outgrow it.

    What is expected and four blocks more: none of 120 searches on SmolLM2 went further (k = 4 and 8, width 4, tokens
    alone and up to 16 of them jointly).
    """
    return math.ceil(expected_columns(k, tol, width, shape) / 2) + 4 * width


def expected_passes(columns: float, width: int) -> float:
    """Return the passes of a search of so many columns: blocks shrink at its end, which takes about three more."""
    return columns / width + _MORE_PASSES


def price(few: tuple[float, float], many: tuple[float, float]) -> tuple[float, float]:
    """Return t₀ and t₁ of t = t₀ + t₁ · rows from (rows, seconds) of two passes.

    t₀ = 0 where their rows are too alike to tell the two apart; t₁ = 0 where more rows took no longer.
    """
    if alike(few, many):
        return 0.0, many[1] / many[0]
    per_row = max(many[1] - few[1], 0.0) / (many[0] - few[0])
    return max(few[1] - per_row * few[0], 0.0), per_row


def alike(few: tuple[float, float], many: tuple[float, float]) -> bool:
    """Whether two passes, as (rows, seconds), have too like rows to tell what a pass costs from what a row does."""
    return many[0] < _ALIKE * few[0]


def fastest_width(per_pass: float, per_column: float, *, k: int, tol: float, least: int) -> int:
    """Return the block width with the least expected time, from ``least`` to 2 k, 8 at most.

    A search of width w takes c (0.82 + 0.09 w) columns and their w-th part of passes, so that time is least at
    w = 3 √(t₀ / t₁): a pass that costs what a column costs asks for 3. ``least`` is kept where no width promises to
    save a tenth. Prices are known for few columns only, and columns that come along for nothing while weights are read
    have their price once there are many: hence the 8, at which a search takes two fifths more columns than at 3.

    Parameters
    ----------
    per_pass, per_column : float
        Seconds of a pass without columns, and of each column of all operators.
    """
    unbounded = (2**31, 2**31)

    def seconds(width: int) -> float:
        columns = expected_columns(k, tol, width, unbounded)
        return per_pass * expected_passes(columns, width) + per_column * columns

    best = min(range(least, max(least, min(2 * k, _WIDEST)) + 1), key=seconds)
    return best if seconds(best) <= _WORTH_CHANGING * seconds(least) else least

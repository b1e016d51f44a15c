"""What rounding alone can do: the one safety constant and the floors that follow from it."""

import math

import torch
from torch import Tensor

SAFETY = 10.0
"""The constant ``c`` in front of every rounding bound of this package: sound operators stay within it.

Over the tiny models of all families and the embedded ones, in four precisions, ⟨A v, u⟩ and ⟨v, Aᵀ u⟩ differ by at most
1.6 ε √rows ‖A v‖ ‖u‖, and columns alone from those of a block by 1.1 ε √rows. Products with the singular vectors of the
matrix are at most 13 ε σ₁ away from σ_j u_j, mostly below 2: within ``c ε σ₁ √passes`` from two passes on
(``python -m bench.rounding``).
"""

LARGEST_ADJOINT_BOUND = 0.1
"""What an adjoint bound is capped at. Chosen: in bfloat16 ``c ε √rows`` is above 1 from 164 rows on: no bound."""

_COARSEST = torch.finfo(torch.bfloat16).eps

_PLAIN_RANGE = (1e-8, 1e8)
"""Largest entries that need no scale. Chosen: their squares, and long sums of these, are well inside of float32."""


def epsilon(dtype: torch.dtype) -> float:
    """Return ε of a floating point type: the distance from 1 to its next number."""
    return torch.finfo(dtype).eps


def epsilon_at(dtype: torch.dtype, length: float, rows: int) -> float:
    """Return ε of products of this length: that of the type, or η √rows / length where that is more.

    η, the smallest subnormal number, is ε times ``smallest_normal``. Products as short as this lose digits to it: half
    of η in each of their rows.
    """
    info = torch.finfo(dtype)
    shorter = info.smallest_normal * math.sqrt(rows) / length if length > 0.0 else 0.0
    return info.eps * max(shorter, 1.0)


def unless_coarser(dtype: torch.dtype, difference: float, rows: int) -> str:
    """Return the other reading of a difference that the rounding of a coarser type explains, to end a sentence with.

    It names the finest such type; it is empty where there is none.

    Parameters
    ----------
    dtype : torch.dtype
        What the operator declares.
    difference : float
        Relative to the products; that of two matrices which have nothing in common is about 1.
    rows : int
    """
    for coarser in (torch.float32, torch.float16, torch.bfloat16):
        explained = min(adjoint_bound(epsilon(coarser), rows), SAFETY * _COARSEST)
        if epsilon(coarser) > epsilon(dtype) and difference <= explained:
            named = f"{coarser}" if epsilon(coarser) == _COARSEST else f"{coarser} or coarser"
            return f"; or the operator computes in {named} instead of the declared {dtype} (then declare that)"
    return ""


def underflow(dtype: torch.dtype, length: float, rows: int) -> float:
    """Return what products that are all zero may hide: ``c`` times the least number in every row; 0 for longer ones.

    Some processors take subnormal numbers for zero (CPUs those of bfloat16, in wide blocks), so that it is the smallest
    normal one; in float16, where those begin at 6e-5, no processor met so far does, and it is η.
    """
    if length > 0.0:
        return 0.0
    info = torch.finfo(dtype)
    least = info.smallest_normal * (info.eps if dtype is torch.float16 else 1.0)
    return SAFETY * least * math.sqrt(rows)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision the solver works in: float64 for float64 operators, float32 for all others."""
    return torch.promote_types(dtype, torch.float32)


def noise_floor(eps: float, sigma: float, passes: int) -> float:
    """Return ``c ε σ₁ √passes``, under which a residual of an operator computed in precision ε says nothing."""
    return rounding_of(eps, sigma) * math.sqrt(max(passes, 1))


def tells_zeros(floor: float, tol: float, sigma: float) -> bool:
    """Whether values under the floor count as zeros of the operator: where the floor is within ``tol`` of σ₁.

    In half precision it is mostly not: values of half the size of σ₁ may hide under it.
    """
    return floor <= tol * sigma


def rounding_of(eps: float, length: float) -> float:
    """Return ``c ε`` times a length: what rounding may make of products as long as this.

    No ε is taken for coarser than that of bfloat16: everything would pass for zero.
    """
    return SAFETY * min(eps, _COARSEST) * length


def adjoint_bound(eps: float, rows: int) -> float:
    """Return the largest |⟨A v, u⟩ - ⟨v, Aᵀ u⟩| / (‖A v‖ ‖u‖) that rounding explains, ``c ε √rows``.

    Capped at 0.1, so that the test still means something in bfloat16; at up to 1 where products lose more digits than
    there, which still tells Aᵀ from -Aᵀ; at ε where that is more: products shorter than their rounding tell nothing.
    """
    return min(SAFETY * eps * math.sqrt(rows), max(LARGEST_ADJOINT_BOUND, min(SAFETY * eps, max(eps, 1.0))))


def agree(
    again: Tensor, products: Tensor, dtype: torch.dtype, rows: int, scale: float, summed: Tensor | None = None
) -> bool:
    """Whether two products with the same rows, times ``scale``, are those of one operator, up to rounding.

    Rounding goes with the length of ``summed``, where ``products`` are its sums: they may be shorter by far.
    """
    length = float((products if summed is None else summed).norm())
    eps = epsilon_at(dtype, length / scale, products.numel())
    return float((again - products).norm()) <= adjoint_bound(eps, rows) * length


def safe_scale(block: Tensor) -> float:
    """Return the power of two to multiply with so that squares neither overflow nor vanish; 1 where none is needed."""
    largest = float(block.abs().max()) if block.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest) or _PLAIN_RANGE[0] < largest < _PLAIN_RANGE[1]:
        return 1.0
    most = int(math.log2(torch.finfo(block.dtype).max)) - 1
    return 2.0 ** min(-round(math.log2(largest)), most)


def powers_of_two(lengths: Tensor) -> Tensor:
    """Return the largest power of two that is no larger than each positive number, and 1 for zeros."""
    mantissas = torch.frexp(lengths).mantissa
    return torch.where(lengths > 0.0, lengths / (2.0 * mantissas), 1.0)

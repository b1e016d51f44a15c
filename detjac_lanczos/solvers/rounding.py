"""What rounding alone can do: the one safety constant and the floors that follow from it."""

import math

import torch
from torch import Tensor

SAFETY = 10.0
"""The constant ``c`` in front of every rounding bound of this package."""

_LARGEST_ADJOINT_BOUND = 0.1


_PLAIN_RANGE = (1e-8, 1e8)


def epsilon(dtype: torch.dtype) -> float:
    """Return the unit spacing of a floating point type."""
    return torch.finfo(dtype).eps


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision the solver works in: float64 for float64 operators, float32 for all others."""
    return torch.promote_types(dtype, torch.float32)


def noise_floor(eps: float, sigma: float, passes: int) -> float:
    """Return ``c ε σ₁ √passes``, under which a residual of an operator computed in precision ε says nothing."""
    return SAFETY * eps * sigma * math.sqrt(max(passes, 1))


def deflation_threshold(eps: float, sigma: float) -> float:
    """Return ``c ε σ₁``: a direction of a block that is shorter than this is taken for rounding."""
    return SAFETY * eps * sigma


def adjoint_bound(eps: float, rows: int) -> float:
    """Return the largest |⟨A v, u⟩ - ⟨v, Aᵀ u⟩| / (‖A v‖ ‖u‖) that rounding explains, ``c ε √rows``.

    Capped at 0.1, so that the test still means something in bfloat16.
    """
    return min(SAFETY * eps * math.sqrt(rows), _LARGEST_ADJOINT_BOUND)


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

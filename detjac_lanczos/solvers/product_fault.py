"""What makes the product of an operator unusable, before its numbers are looked at."""

from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.solvers.rounding import epsilon


def product_fault(product: Any, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> str | None:
    """Return what a product is and should not be, for a sentence; None where it can be used.

    Parameters
    ----------
    product : Any
        What the operator returned.
    shape : (int, int)
        What a product with this block has.
    dtype, device
        Those that the operator declares.
    """
    if not isinstance(product, Tensor):
        return f"a {type(product).__name__}: a torch tensor is needed"
    if tuple(product.shape) != shape:
        return f"of shape {tuple(product.shape)} instead of {shape}"
    if product.layout is not torch.strided:
        return f"of layout {product.layout}: a dense tensor is needed, as to_dense() makes it"
    if not product.dtype.is_floating_point:
        return f"{product.dtype}: a real floating point type is needed"
    if epsilon(product.dtype) > epsilon(dtype):
        return (
            f"{product.dtype}, coarser than the {dtype} that the operator declares: give it the dtype that it "
            "computes in"
        )
    if product.device.type != device.type:
        return f"on {product.device}, the operator on {device}"
    return None

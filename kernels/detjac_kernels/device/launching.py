"""Launching a kernel where its operands lie.

Triton compiles for the current device and launches on its current stream, wherever the tensors are: a model that is
spread over several devices would hand pointers of one to another.
"""

from typing import Any

import torch
from torch import Tensor

FP_FUSION = False
"""Whether the compiler may contract ``a · b + c``: pinned, since its default differs between versions of Triton."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its tensors, on that device's current stream.

    Parameters
    ----------
    kernel : triton.JITFunction
    grid : tuple of int
        Programs in each direction.
    *arguments, **constants
        Of the kernel, and Triton's own options.

    Raises
    ------
    ValueError
        If the tensors are not all on one device.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if any(tensor.device != tensors[0].device for tensor in tensors):
        found = ", ".join(sorted({str(tensor.device) for tensor in tensors}))
        raise ValueError(f"operands of one kernel lie on several devices: {found}; move them to one")
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](*arguments, **constants, enable_fp_fusion=FP_FUSION)

"""Names of floating-point types that a model can be loaded in."""

from collections.abc import Iterator
from textwrap import shorten

import torch
from torch import nn

from detjac_lanczos.errors import InputError, first_line
from detjac_lanczos.models.packed_modules import is_packed

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the precision a model computes in: that of its first parameter that is not packed."""
    return next((dtype for dtype in dtypes_of(model) if dtype in DTYPES.values()), torch.float32)


def dtypes_of(model: nn.Module) -> Iterator[torch.dtype]:
    """Yield the floating-point type of each parameter; packed ones are bytes, of whatever type they are stored as."""
    for module in model.modules():
        if not is_packed(module):
            yield from (p.dtype for p in module._parameters.values() if p is not None and p.is_floating_point())


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return the torch type meant by `dtype`, or None for ``"auto"``: the type the weights are stored in.

    Raises
    ------
    InputError
        If it is no floating-point type of `DTYPES`.
    """
    if isinstance(dtype, str) and dtype == "auto":
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found in DTYPES.values():
        return found
    raise InputError(f"dtype {dtype!r} cannot hold a model; use 'auto' or one of {', '.join(DTYPES)}")


def parse_device(device: str | torch.device | None) -> torch.device | None:
    """Return the torch device meant by `device`; None stays None.

    Raises
    ------
    InputError
        If torch knows no such device or this machine has none.
    """
    if device is None:
        return None
    try:
        parsed = torch.device(device.lower() if isinstance(device, str) else device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = shorten(first_line(error).split(". ")[0], 120, placeholder=" …")
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); try device='cpu'") from None
    return parsed


def in_several_dtypes(model: nn.Module) -> str:
    """Return the end of a message that names the floating-point types of a model's weights; empty if there is one."""
    found = sorted({str(dtype).removeprefix("torch.") for dtype in dtypes_of(model)})
    return f": its weights are of {' and '.join(found)}; give them one dtype" if len(found) > 1 else ""

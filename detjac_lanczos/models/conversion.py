"""The tensors of a model in another dtype or on another device: as transformers would have loaded them there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.offloaded import execution_devices, offloaded
from detjac_lanczos.models.packed_modules import is_packed, packing_of


@dataclass(frozen=True, eq=False)
class Conversion:
    """A parameter or buffer, the module that holds it, and what it becomes: itself where nothing changes."""

    module: nn.Module
    name: str
    tensor: Tensor
    converted: Tensor


def conversions(
    model: nn.Module, dtype: torch.dtype | None, device: torch.device | None = None
) -> Iterator[Conversion]:
    """Convert the tensors of a model one after another, a parameter that modules share once; None leaves them as is.

    Packed weights stay as they are and rotary frequencies in float32; in half precision so does what a model says it
    keeps there. A buffer whose module also knows its number exactly (Gemma's ``scalar_embed_scale``) is that number
    rounded once, not twice.
    """
    kept, shared = _kept_in_float32(model, dtype), set[int]()
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or id(tensor) in shared:
                continue
            if isinstance(tensor, nn.Parameter):
                shared.add(id(tensor))
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            if "inv_freq" in name or (name == "weight" and is_packed(module)):
                wanted = tensor.dtype
            elif wanted is dtype and any(re.search(pattern, f"{path}.{name}") for pattern in kept):
                wanted = torch.float32
            yield Conversion(module, name, tensor, _converted(module, name, tensor, wanted, device or tensor.device))


def _converted(module: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = tensor.detach().to(device, dtype)
    if value.dtype is tensor.dtype and value.device == tensor.device:
        return tensor
    number = getattr(module, f"scalar_{name}", None)
    if isinstance(number, float) and torch.equal(tensor, torch.full_like(tensor, number)):
        value = torch.full_like(value, number)
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model in place, tensor by tensor."""
    for found in conversions(model, dtype):
        if isinstance(found.tensor, nn.Parameter):
            found.tensor.data = found.converted.data
        else:
            found.module._buffers[found.name] = found.converted


def why_fixed(model: nn.Module) -> str | None:
    """Return why the weights of a model can be neither converted nor moved; None where they can."""
    if packing := packing_of(model):
        return f"packed ({packing})"
    if any(offloaded(module) is not None for module in model.modules()):
        return "offloaded by accelerate"
    devices = execution_devices(model)
    return f"spread over {', '.join(sorted(map(str, devices)))}" if len(devices) > 1 else None


def _kept_in_float32(model: nn.Module, dtype: torch.dtype | None) -> list[str]:
    """Return patterns of names of what transformers loads in float32 when asked for a dtype."""
    inner = without_adapters(model)
    kept: list[str] = []
    if dtype in (torch.float16, torch.bfloat16):
        kept += getattr(inner, "_keep_in_fp32_modules_strict", None) or ()
    if dtype is torch.float16:
        kept += getattr(inner, "_keep_in_fp32_modules", None) or ()
    return [pattern.replace("*", ".*") for pattern in kept]

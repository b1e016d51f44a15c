"""Linear modules that keep their weight packed, in whatever format."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from detjac_kernels.decoded import scratch_bytes
from detjac_kernels.four_bit import PAIRS_BYTES
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models import bitsandbytes
from detjac_lanczos.models.decoded import DecodedWeight, runs_of
from detjac_lanczos.models.dequantized import decodes_to_finite, dequantized_weight, description_of, offers_dequantize
from detjac_lanczos.models.mxfp4 import Mxfp4Experts
from detjac_lanczos.models.weights import Part, Weight

_SLACK = 10
"""Roundings of a product, in units of ε √width, that count as none."""

_sound: WeakSet[nn.Module] = WeakSet()


def is_packed(module: nn.Module) -> bool:
    """Tell whether a linear module keeps its weight packed in a format that is read here."""
    return bitsandbytes.kind_of(module) is not None or offers_dequantize(module)


def holds_codes(model: nn.Module, key: str) -> bool:
    """Tell whether a tensor of a state dict is packed: bytes, that are no numbers in whatever type they are stored as.

    Of a format that decodes itself nothing is known but what it decodes to: its tensors are codes where that is finite.
    """
    path, _, own = key.rpartition(".")
    try:
        module: Any = model.get_submodule(path)
    except AttributeError:
        return False  # of a quantisation state, such as weight.absmax
    if bitsandbytes.kind_of(module) is not None:
        return own == "weight" and bitsandbytes.is_quantised(module)
    return own != "bias" and offers_dequantize(module) and decodes_to_finite(module)


def packing_of(model: nn.Module) -> str | None:
    """Return the packed formats of a model in words; None where all its weights are plain."""
    found: dict[str, None] = {}
    for module in model.modules():
        if bitsandbytes.kind_of(module) is not None:
            found[f"{bitsandbytes.description_of(module)} (bitsandbytes)"] = None
        elif offers_dequantize(module):
            found[description_of(module)] = None
        elif isinstance(module, Mxfp4Experts):
            found["MXFP4 experts"] = None
    return ", ".join(found) or None


def scratch_of(model: nn.Module, itemsize: int) -> int:
    """Return the bytes that packed weights pass through, for rows of ``itemsize`` bytes a number; 0 for plain weights.

    A format that is decoded by its own ``dequantize()`` gives a whole matrix.
    """
    most = tables = 0
    for module in model.modules():
        inside: Any = module
        kind = bitsandbytes.kind_of(module)
        tables += PAIRS_BYTES if kind == "4-bit" else 0
        if kind is not None:
            most = max(most, scratch_bytes(inside.out_features, inside.in_features, itemsize, coded=kind == "4-bit"))
        elif isinstance(module, Mxfp4Experts):
            shapes = (module.weight(name, 0).shape for name in module.MATRICES)
            most = max(most, *(scratch_bytes(*shape, itemsize, coded=True) for shape in shapes))
        elif offers_dequantize(module):
            most = max(most, inside.out_features * inside.in_features * (4 + itemsize))
    return most + tables


def packed_weight(module: nn.Module, name: str, part: Part | None) -> Weight:
    """Return the weight of a packed module, or of a part of its rows; tested when it is first met.

    Raises
    ------
    UnsupportedModelError
        If it cannot be decoded, or its products are not linear and adjoint to each other.
    """
    kind = bitsandbytes.kind_of(module)
    if kind is None:
        whole = dequantized_weight(module, name)
        _test_once(module, whole, name)
        return whole.part(runs_of(part, whole.shape[0]))
    rows = bitsandbytes.rows_of(module, name)
    weight_class = bitsandbytes.FourBitWeight if kind == "4-bit" else DecodedWeight
    _test_once(module, weight_class(rows), name)
    return weight_class(rows, runs_of(part, rows.shape[0]))


def _test_once(module: nn.Module, weight: Weight, name: str) -> None:
    if module not in _sound and weight.device.type != "meta":
        require_linear(weight, name)
        _sound.add(module)


@torch.no_grad()
def require_linear(weight: Weight, name: str) -> None:
    """Multiply random rows both ways.

    Raises
    ------
    UnsupportedModelError
        If ``x Wᵀ`` is not linear in x, or ``y W`` is not its adjoint.
    """
    f, d = weight.shape
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, d, generator=generator, device="cpu").to(weight.device)
    y = torch.randn(1, f, generator=generator, device="cpu").to(weight.device)
    ya, yb, yab = weight.apply(torch.stack([a, b, a + b]))
    x = weight.apply_transposed(y)[0]
    eps = _SLACK * torch.finfo(torch.float32).eps * max(f, d) ** 0.5
    if not (yab - ya - yb).norm() <= eps * (ya.norm() + yb.norm() + yab.norm()):
        raise UnsupportedModelError(f"{name}: its product is not linear in its input; load the model dequantised")
    if not (ya @ y[0] - a @ x).abs() <= eps * (ya.norm() * y.norm() + a.norm() * x.norm()):
        raise UnsupportedModelError(f"{name}: its product and the transposed one do not agree; load it dequantised")

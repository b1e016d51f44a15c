"""Norms: 1/rms or 1/std is frozen, the rest is linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detjac_kernels import rms_reciprocal
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.maps import Bias, Center, ColumnScale, Map, RowScale
from detjac_lanczos.frozen.sizes import BlockShape
from detjac_lanczos.frozen.tape import Tape
from detjac_lanczos.frozen.words.word import Coefficients, Freeze, reading
from detjac_lanczos.models.adapters import running_module
from detjac_lanczos.models.offloaded import tensor_of


@dataclass(frozen=True)
class RMSNorm:
    """x → w ∘ x / rms(x), with 1/rms frozen; ``plus_one`` where the module multiplies by 1 + weight."""

    path: str
    plus_one: bool = False

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record 1/rms of the norm's input: (positions,)."""
        _record_rstd(self, block, name, record, centred=False)

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """One number for each position, and 1 + w where a sweep multiplies by that."""
        weight: Any = running_module(block.get_submodule(self.path)).weight
        return BlockShape(numbers=1, made=weight.numel() if self.plus_one else 0)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the frozen row scale and the weight."""
        w = tensor_of(running_module(block.get_submodule(self.path)), "weight")
        if w is None:
            raise UnsupportedModelError(f"{name}{self.path} has no weight; this is not the norm its family declares")
        if self.plus_one:
            w = _plus_one(w)
        # The final norm may lie on another device than the block whose output it was observed on.
        return [RowScale(coefficients[f"{name}{self.path}.rstd"].to(w.device)), ColumnScale(w)]


@dataclass(frozen=True)
class LayerNorm:
    """x → w ∘ (x − mean x) / std(x) + b, with 1/std frozen; w and b where the module has them.

    ``plus_one`` where the module multiplies by 1 + weight.
    """

    path: str
    plus_one: bool = False

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record 1/std of the norm's input: (positions,)."""
        _record_rstd(self, block, name, record, centred=True)

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """One number for each position, a centered input, and 1 + w where a sweep multiplies by that."""
        weight = running_module(block.get_submodule(self.path)).weight if self.plus_one else None
        return BlockShape(numbers=1, centered=True, made=weight.numel() if isinstance(weight, Tensor) else 0)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the centering, the frozen row scale, the weight and the bias."""
        module = running_module(block.get_submodule(self.path))
        weight, bias = tensor_of(module, "weight"), tensor_of(module, "bias")
        rstd = coefficients[f"{name}{self.path}.rstd"]
        maps: list[Map] = [Center(), RowScale(rstd if weight is None else rstd.to(weight.device))]
        if weight is not None:
            maps.append(ColumnScale(_plus_one(weight) if self.plus_one else weight))
        if bias is not None:
            maps.append(Bias(bias))
        return maps


def _plus_one(weight: Tensor) -> Tensor:
    return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))


def declared_eps(module: nn.Module) -> float | None:
    """Return the epsilon that a norm keeps as a number; None where it keeps none."""
    for attribute in ("variance_epsilon", "eps"):
        eps = getattr(module, attribute, None)
        if isinstance(eps, float | int) and not isinstance(eps, bool):
            return float(eps)
    return None


def _record_rstd(word: RMSNorm | LayerNorm, block: nn.Module, name: str, record: Tape, *, centred: bool) -> None:
    where, module = f"{name}{word.path}", running_module(block.get_submodule(word.path))
    kind = "LayerNorm" if centred else "RMSNorm"
    if not (type(module).__name__.endswith(kind) or (centred and isinstance(module, nn.LayerNorm))):
        raise UnsupportedModelError(f"{where} is a {type(module).__name__}, not the norm its family declares")
    eps = declared_eps(module)
    if eps is None:
        raise UnsupportedModelError(
            f"{where} ({type(module).__name__}) has no epsilon; this is not the norm its family declares"
        )

    @reading(word, name)
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        record(f"{where}.rstd", rms_reciprocal(x - x.mean(-1, keepdim=True) if centred else x, eps).flatten())

    module.register_forward_pre_hook(hook)

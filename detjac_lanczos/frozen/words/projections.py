"""Linear modules, multipliers and constants."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.frozen.maps import Bias, ColumnScale, Gate, Linear, Map
from detjac_lanczos.frozen.sizes import NOTHING, BlockShape
from detjac_lanczos.frozen.tape import Tape
from detjac_lanczos.frozen.words.parts import PartOf
from detjac_lanczos.frozen.words.word import Coefficients, Freeze, reading
from detjac_lanczos.models.linear_modules import bias_of, linear_shape, weight_of
from detjac_lanczos.models.weights import Part, PerHeadWeight


@dataclass(frozen=True)
class Project:
    """x → x Wᵀ + b: a linear module, or a part of its rows (see `parts`), cut by the module that holds it."""

    path: str
    part: PartOf | None = None

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Nothing is frozen in a linear module."""

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Nothing is frozen here; rows that lie apart, by head, are copied for a product."""
        if self.part is None:
            return NOTHING
        whole = torch.empty(linear_shape(block.get_submodule(self.path)), device="meta")
        part = self._cut(self.part, whole, block)
        return NOTHING if part.ndim == 2 else BlockShape(panel=part[: PerHeadWeight.heads_at_once(part)].numel())

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the weight, in place, and its bias where it has one."""
        part = self.part
        if part is None:
            return linear_maps(block, self.path, name)
        return linear_maps(block, self.path, name, lambda rows: self._cut(part, rows, block))

    def _cut(self, part: PartOf, rows: Tensor, block: nn.Module) -> Tensor:
        try:
            return part(rows, block.get_submodule(self.path.rpartition(".")[0]))
        except RuntimeError as error:
            raise ValueError(f"{self.path} has no such part ({error})") from error


def linear_maps(block: nn.Module, path: str, name: str, part: Part | None = None) -> list[Map]:
    """Return the maps of a linear module, or of a part of its rows: its weight in place and its bias."""
    module = block.get_submodule(path)
    maps: list[Map] = [Linear(weight_of(module, f"{name}{path}", part))]
    bias = bias_of(module, part)
    return maps if bias is None else [*maps, Bias(bias)]


@dataclass(frozen=True)
class Scale:
    """x → s x (or x / s): one number that the module keeps under ``attribute``."""

    attribute: str
    divide: bool = False

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Nothing is frozen in a constant."""

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Nothing is frozen here."""
        return NOTHING

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the number as a column scale."""
        return [ColumnScale(torch.tensor(self.factor(block), dtype=torch.float64, device="cpu"))]

    def factor(self, block: nn.Module) -> float:
        """Return s."""
        value = attrgetter(self.attribute)(block)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{self.attribute} has the shape {tuple(value.shape)}, and a scale is one number")
        return 1 / float(value) if self.divide else float(value)


@dataclass(frozen=True)
class Constant:
    """x_t → x_t + c_t: the output of a module that does not read the stream, such as learned positions."""

    path: str

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record the module's output: (positions, d)."""

        @reading(self, name)
        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            record(f"{name}{self.path}.constant", out.flatten(0, -2))

        block.get_submodule(self.path).register_forward_hook(hook)

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """One row of the module's output for each position."""
        table: Any = block.get_submodule(self.path)
        return BlockShape(numbers=table.weight.shape[1])

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the recorded rows as a bias."""
        return [Bias(coefficients[f"{name}{self.path}.constant"])]


@dataclass(frozen=True)
class Softcap:
    """z → c tanh(z / c), elementwise, with the ratio c tanh(z / c) / z frozen; nothing where the model has no cap.

    On the way to the logits alone, and no word of a block: the ratio is as wide as the vocabulary, so nothing is
    recorded in a capture, and it is made where it is asked for.
    """

    attribute: str

    def maps_at(self, model: nn.Module, z: Tensor) -> list[Map]:
        """Return the frozen ratio at values z: (positions, f)."""
        cap = attrgetter(self.attribute)(model)
        if cap is None:
            return []
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return [Gate(torch.where(z == 0, 1.0, torch.tanh(z / cap) * cap / z))]

"""MLPs: one factor of a product is frozen, or the ratio act(z)/z of an activation alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.activations import ratio
from detjac_lanczos.frozen.maps import Gate, Linear, Map, apply_rowwise
from detjac_lanczos.frozen.rebuilt import RebuiltRows
from detjac_lanczos.frozen.sizes import BlockShape, GateShape
from detjac_lanczos.frozen.sources import sources_of
from detjac_lanczos.frozen.tape import Tape
from detjac_lanczos.frozen.words.product import GATED, factors, product_maps
from detjac_lanczos.frozen.words.projections import linear_maps
from detjac_lanczos.frozen.words.word import Coefficients, Freeze, reading
from detjac_lanczos.models.linear_modules import has_bias, linear_shape


@dataclass(frozen=True)
class GatedMLP:
    """x → act(gate x) ∘ (up x), with one factor frozen (or, ``freeze="half"``, the mean of the two maps).

    ``gate`` and ``up`` are two linear modules, or the same one where it is fused: gate rows first, then up rows.
    """

    gate: str
    up: str
    activation: str

    @classmethod
    def fused(cls, path: str, activation: str) -> GatedMLP:
        """Return the word for one module whose rows are those of the gate, then those of up: the order counts.

        The other way round, act would be applied to the wrong half; the first `detach` refuses such a network.
        """
        return cls(path, path, activation)

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record the frozen factors of the product, (positions, f) each, or the rows (positions, d) they come from."""
        activation = block.get_submodule(self.activation)
        prefix = f"{name}{self.gate}"
        rebuild = record.way("gates", prefix) == "rebuild"
        seen: dict[str, Tensor] = {}

        @reading(self, name)
        def see(_: nn.Module, args: tuple[Any, ...], out: Tensor, role: str) -> None:
            seen[role] = (args[0] if rebuild else out).flatten(0, -2)
            if len(seen) < 2 and self.gate != self.up:
                return
            if rebuild:
                if self.gate != self.up and not torch.equal(seen["gate"], seen["up"]):
                    raise UnsupportedModelError(f"{prefix} and {name}{self.up} read different rows; give more memory")
                _record_inputs(record, prefix, GATED.names(freeze), seen["gate"])
            else:
                z, u = seen["gate"].chunk(2, dim=-1) if self.gate == self.up else (seen["gate"], seen["up"])
                for key, value in factors(GATED, activation, z, u, freeze).items():
                    record(f"{prefix}.{key}", value, "gates")
            seen.clear()

        for role, path in {"gate": self.gate, "up": self.up}.items():
            if role == "gate" or path != self.gate:
                block.get_submodule(path).register_forward_hook(partial(see, role=role))

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Return the width of the factors and of what they are made of."""
        f, d = linear_shape(block.get_submodule(self.gate))
        names = GATED.names(freeze)
        projections = sum(1 if name == "activation" else 2 for name in names)
        width = f // 2 if self.gate == self.up else f
        biased = any(has_bias(block.get_submodule(path)) for path in (self.gate, self.up))
        return BlockShape(gates=(GateShape(d, width, len(names), projections, biased),))

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the linear factor and the frozen one."""
        prefix = f"{name}{self.gate}"

        @cache
        def half(index: int) -> tuple[Map, ...]:
            part = (lambda rows: rows.chunk(2)[index]) if self.gate == self.up else None
            return tuple(linear_maps(block, (self.gate, self.up)[index], name, part))

        def make(x: Tensor, key: str) -> Tensor:
            activation = block.get_submodule(self.activation)
            return GATED.factor(key, activation, _rows(half(0), x), lambda: _rows(half(1), x), freeze)

        frozen: dict[str, Tensor | RebuiltRows] = dict(coefficients)
        if f"{prefix}.input" in coefficients:
            for key in GATED.names(freeze):
                made = partial(make, key=key)
                frozen[f"{prefix}.{key}"] = _rebuilt(coefficients, prefix, key, made, half(0), half(1))
        return product_maps(lambda: half(0), lambda: half(1), prefix, frozen)


@dataclass(frozen=True)
class ActivatedMLP:
    """x → act(W x + b) = (act(z)/z) ∘ z with z = W x + b, the ratio frozen (its limit where z = 0)."""

    path: str
    activation: str

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record act(z)/z, (positions, f), or the rows (positions, d) it comes from."""
        activation = block.get_submodule(self.activation)
        prefix = f"{name}{self.path}"
        rebuild = record.way("gates", prefix) == "rebuild"

        @reading(self, name)
        def hook(_: nn.Module, args: tuple[Any, ...], z: Tensor) -> None:
            if rebuild:
                _record_inputs(record, prefix, ("ratio",), args[0].flatten(0, -2))
            else:
                record(f"{prefix}.ratio", ratio(activation, z).flatten(0, -2), "gates")

        block.get_submodule(self.path).register_forward_hook(hook)

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Return the width of the ratio and of what it is made of."""
        f, d = linear_shape(block.get_submodule(self.path))
        return BlockShape(gates=(GateShape(d, f, 1, 1, has_bias(block.get_submodule(self.path))),))

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the linear module and the frozen ratio."""
        prefix = f"{name}{self.path}"
        linear = tuple(linear_maps(block, self.path, name))
        if f"{prefix}.input" not in coefficients:
            return [*linear, Gate(coefficients[f"{prefix}.ratio"])]

        def make(x: Tensor) -> Tensor:
            return ratio(block.get_submodule(self.activation), _rows(linear, x))

        return [*linear, Gate(_rebuilt(coefficients, prefix, "ratio", make, linear))]


def _record_inputs(record: Tape, prefix: str, keys: Sequence[str], rows: Tensor) -> None:
    """Record what enters a projection, and for each factor made of it a scale that folding may change."""
    record(f"{prefix}.input", rows, as_is=True)
    for key in keys:
        record(f"{prefix}.{key}.scale", rows.new_ones(len(rows)))


def _rebuilt(
    coefficients: Coefficients, prefix: str, key: str, make: Callable[[Tensor], Tensor], *linear: Sequence[Map]
) -> RebuiltRows:
    width = next(step.weight.shape[0] for step in linear[0] if isinstance(step, Linear))
    inputs, scale = coefficients[f"{prefix}.input"], coefficients[f"{prefix}.{key}.scale"]
    return RebuiltRows(inputs, scale, make, width, tuple(s for chain in linear for s in sources_of(chain)))


def _rows(linear: Sequence[Map], x: Tensor) -> Tensor:
    return apply_rowwise(linear, x, torch.arange(len(x), device=x.device))

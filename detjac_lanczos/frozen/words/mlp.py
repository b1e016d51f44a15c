"""MLPs: one factor of a product is frozen, or the ratio act(z)/z of an activation alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from detjac_lanczos.frozen.activations import ratio
from detjac_lanczos.frozen.maps import Gate, Map
from detjac_lanczos.frozen.words.product import GATED, Product, product_maps
from detjac_lanczos.frozen.words.projections import linear_maps
from detjac_lanczos.frozen.words.word import Coefficients, Freeze, Record


@dataclass(frozen=True)
class GatedMLP:
    """x → act(gate x) ∘ (up x), with one factor frozen (or, ``freeze="half"``, the mean of the two maps).

    ``gate`` and ``up`` are two linear modules, or the same one where it is fused: gate rows first, then up rows.
    """

    gate: str
    up: str
    activation: str
    product: Product = GATED

    @classmethod
    def fused(cls, path: str, activation: str) -> GatedMLP:
        """Return the word for one module of gate rows and up rows."""
        return cls(path, path, activation)

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Record the frozen factors of the product: (positions, f) each."""
        activation = block.get_submodule(self.activation)
        seen: dict[str, Tensor] = {}

        def see(_: nn.Module, args: tuple[Any, ...], out: Tensor, role: str) -> None:
            out = out.flatten(0, -2)
            if self.gate == self.up:
                seen["gate"], seen["up"] = out.chunk(2, dim=-1)
            else:
                seen[role] = out
            if len(seen) == 2:
                factors = self.product.factors(activation, seen.pop("gate"), seen.pop("up"), freeze)
                for key, value in factors.items():
                    record(f"{name}{self.gate}.{key}", value)

        for role, path in {"gate": self.gate, "up": self.up}.items():
            if role == "gate" or path != self.gate:
                block.get_submodule(path).register_forward_hook(partial(see, role=role))

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the linear factor and the frozen one."""
        fused = self.gate == self.up

        def half(path: str, index: int) -> list[Map]:
            return linear_maps(block, path, name, (lambda rows: rows.chunk(2)[index]) if fused else None)

        return product_maps(lambda: half(self.gate, 0), lambda: half(self.up, 1), f"{name}{self.gate}", coefficients)


@dataclass(frozen=True)
class ActivatedMLP:
    """x → act(W x + b) = (act(z)/z) ∘ z with z = W x + b, the ratio frozen (its limit where z = 0)."""

    path: str
    activation: str

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Record act(z)/z: (positions, f)."""
        activation = block.get_submodule(self.activation)

        def hook(_: nn.Module, args: tuple[Any, ...], z: Tensor) -> None:
            record(f"{name}{self.path}.ratio", ratio(activation, z).flatten(0, -2))

        block.get_submodule(self.path).register_forward_hook(hook)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the linear module and the frozen ratio."""
        return [*linear_maps(block, self.path, name), Gate(coefficients[f"{name}{self.path}.ratio"])]

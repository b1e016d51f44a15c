"""Products of two linear functions of x through an activation, and their frozen factors.

Each reproduces the product exactly: "activation" (with "constant") freezes what the activation gives and keeps u
linear; "factor" freezes u and the ratio act(z)/z and keeps z linear; "half" takes the mean of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from detjac_lanczos.frozen.activations import ratio
from detjac_lanczos.frozen.maps import Bias, Gate, Map, Sum
from detjac_lanczos.frozen.rebuilt import RebuiltRows
from detjac_lanczos.frozen.words.word import Freeze


class Product(Protocol):
    """A product of z = gate x and u = up x, both (positions, f)."""

    def names(self, freeze: Freeze) -> tuple[str, ...]:
        """Return the names of the frozen factors: "activation", "constant", "factor"."""

    def factor(self, name: str, owner: Any, z: Tensor, u: Callable[[], Tensor], freeze: Freeze) -> Tensor:
        """Return one of them, of the shape of z; ``u`` is called where it is needed."""


def factors(product: Product, owner: Any, z: Tensor, u: Tensor, freeze: Freeze) -> dict[str, Tensor]:
    """Return all frozen factors by name."""
    return {name: product.factor(name, owner, z, lambda: u, freeze) for name in product.names(freeze)}


@dataclass(frozen=True)
class Gated:
    """act(z) ∘ u; ``owner`` is the activation."""

    def names(self, freeze: Freeze) -> tuple[str, ...]:
        """Return the factors of the linear maps that are kept."""
        return {"gate": ("activation",), "up": ("factor",), "half": ("activation", "factor")}[freeze]

    def factor(self, name: str, owner: Any, z: Tensor, u: Callable[[], Tensor], freeze: Freeze) -> Tensor:
        """Return act(z), or act(z)/z ∘ u."""
        share = 0.5 if freeze == "half" else 1.0
        # Not owner(z): hooks that the caller has on it have no part in the network.
        return share * owner.forward(z) if name == "activation" else share * ratio(owner, z) * u()


@dataclass(frozen=True)
class ClampedSwish:
    """g σ(α g) ∘ (clamp(u) + 1) with g = min(z, limit), as in gpt-oss; ``owner`` keeps ``alpha`` and ``limit``.

    Where u is clamped it is a constant: the linear part ends there, ±limit goes into the offset.
    """

    def names(self, freeze: Freeze) -> tuple[str, ...]:
        """Return the factors of the linear maps that are kept, and the constant part."""
        kept = {"gate": ("activation", "constant"), "up": ("factor",), "half": ("activation", "constant", "factor")}
        return kept[freeze]

    def factor(self, name: str, owner: Any, z: Tensor, u: Callable[[], Tensor], freeze: Freeze) -> Tensor:
        """Return g σ(α g) where u is not clamped and its constant part, or the other factor times g σ(α g)/z."""
        share = 0.5 if freeze == "half" else 1.0
        limit = owner.limit
        swish = torch.sigmoid(owner.alpha * z.clamp(max=limit))
        given = u()
        clamped = given.clamp(-limit, limit)
        if name == "factor":
            return share * torch.where(z > limit, limit / z, 1.0) * swish * (clamped + 1)
        free = given == clamped
        activation = share * z.clamp(max=limit) * swish
        return activation * (free if name == "activation" else torch.where(free, 0.0, clamped) + 1)


GATED = Gated()
CLAMPED_SWISH = ClampedSwish()


def product_maps(
    gate: Callable[[], Iterable[Map]],
    up: Callable[[], Iterable[Map]],
    prefix: str,
    frozen: Mapping[str, Tensor | RebuiltRows],
) -> list[Map]:
    """Return the linear factor and the frozen one, or the sum of both choices where both were recorded."""
    chains: list[list[Map]] = []
    if f"{prefix}.activation" in frozen:
        chains.append([*up(), Gate(frozen[f"{prefix}.activation"])])
        constant = frozen.get(f"{prefix}.constant")
        if isinstance(constant, Tensor):
            chains[-1].append(Bias(constant))
    if f"{prefix}.factor" in frozen:
        chains.append([*gate(), Gate(frozen[f"{prefix}.factor"])])
    if not chains:
        raise KeyError(prefix)
    return chains[0] if len(chains) == 1 else [Sum(tuple(map(tuple, chains)))]

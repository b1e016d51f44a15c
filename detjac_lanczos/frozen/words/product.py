"""Products of two linear functions of x through an activation, and their frozen factors.

Each reproduces the product exactly: "activation" (with "constant") freezes what the activation gives and keeps u
linear; "factor" freezes u and the ratio act(z)/z and keeps z linear; "half" takes the mean of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from detjac_lanczos.frozen.activations import ratio
from detjac_lanczos.frozen.maps import Bias, Gate, Map, Sum
from detjac_lanczos.frozen.words.word import Coefficients, Freeze


class Product(Protocol):
    """A product of z = gate x and u = up x."""

    def factors(self, owner: Any, z: Tensor, u: Tensor, freeze: Freeze) -> dict[str, Tensor]:
        """Return the frozen factors by name, each of the shape of z: "activation", "constant", "factor"."""


@dataclass(frozen=True)
class Gated:
    """act(z) ∘ u; ``owner`` is the activation."""

    def factors(self, owner: Any, z: Tensor, u: Tensor, freeze: Freeze) -> dict[str, Tensor]:
        """Return act(z), or act(z)/z ∘ u."""
        share = 0.5 if freeze == "half" else 1.0
        frozen = {}
        if freeze != "up":
            frozen["activation"] = share * owner(z)
        if freeze != "gate":
            frozen["factor"] = share * ratio(owner, z) * u
        return frozen


@dataclass(frozen=True)
class ClampedSwish:
    """g σ(α g) ∘ (clamp(u) + 1) with g = min(z, limit), as in gpt-oss; ``owner`` keeps ``alpha`` and ``limit``.

    Where u is clamped it is a constant: the linear part ends there, ±limit goes into the offset.
    """

    def factors(self, owner: Any, z: Tensor, u: Tensor, freeze: Freeze) -> dict[str, Tensor]:
        """Return g σ(α g) where u is not clamped and its constant part, or the other factor times g σ(α g)/z."""
        share = 0.5 if freeze == "half" else 1.0
        limit = owner.limit
        swish = torch.sigmoid(owner.alpha * z.clamp(max=limit))
        clamped = u.clamp(-limit, limit)
        free = u == clamped
        frozen = {}
        if freeze != "up":
            activation = share * z.clamp(max=limit) * swish
            frozen["activation"] = activation * free
            frozen["constant"] = activation * (torch.where(free, 0.0, clamped) + 1)
        if freeze != "gate":
            frozen["factor"] = share * torch.where(z > limit, limit / z, 1.0) * swish * (clamped + 1)
        return frozen


GATED = Gated()
CLAMPED_SWISH = ClampedSwish()


def product_maps(
    gate: Callable[[], list[Map]], up: Callable[[], list[Map]], prefix: str, coefficients: Coefficients
) -> list[Map]:
    """Return the linear factor and the frozen one, or the sum of both choices where both were recorded."""
    chains: list[list[Map]] = []
    if f"{prefix}.activation" in coefficients:
        chains.append([*up(), Gate(coefficients[f"{prefix}.activation"])])
        if f"{prefix}.constant" in coefficients:
            chains[-1].append(Bias(coefficients[f"{prefix}.constant"]))
    if f"{prefix}.factor" in coefficients:
        chains.append([*gate(), Gate(coefficients[f"{prefix}.factor"])])
    return chains[0] if len(chains) == 1 else [Sum(tuple(map(tuple, chains)))]

"""Attention with its weights frozen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.attention import observe_attention
from detjac_lanczos.frozen.maps import Map, Mix
from detjac_lanczos.frozen.words.word import Coefficients, Freeze, Record


@dataclass(frozen=True)
class Attend:
    """Values → P values per head, with the attention weights P frozen."""

    path: str

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Record P: (heads, positions, positions)."""

        def show(probabilities: Tensor) -> None:
            if (probabilities.triu(1) > 0).any():
                raise UnsupportedModelError(
                    f"{name}{self.path} attends to later positions; only causal models are served"
                )
            record(f"{name}{self.path}.mixing", probabilities[0])

        observe_attention(block.get_submodule(self.path), show)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the mixing of every prompt."""
        prefix = f"{name}{self.path}.mixing."
        keys = sorted((key for key in coefficients if key.startswith(prefix)), key=lambda key: int(key[len(prefix) :]))
        if not keys:
            raise KeyError(prefix.rstrip("."))
        probabilities = tuple(coefficients[key] for key in keys)
        groups = getattr(block.get_submodule(self.path), "num_key_value_groups", 1)
        return [Mix(probabilities, kv_heads=probabilities[0].shape[0] // groups)]

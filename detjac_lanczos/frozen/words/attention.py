"""Attention with its weights frozen."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.attention import Attended, first_visible, observe_attention
from detjac_lanczos.frozen.maps import Map, Mix
from detjac_lanczos.frozen.rebuilt import parts_of
from detjac_lanczos.frozen.sizes import BlockShape, attention_shape
from detjac_lanczos.frozen.words.word import Coefficients, Freeze

if TYPE_CHECKING:
    from detjac_lanczos.frozen.tape import Tape


@dataclass(frozen=True)
class Attend:
    """Values → P values per head, with the attention weights P frozen."""

    path: str

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record P, (heads, n, n), or what it can be made from again."""
        observe_attention(block.get_submodule(self.path), Observer(f"{name}{self.path}", record))

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Return heads and the width of queries."""
        return attention_shape(block.get_submodule(self.path))

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the mixing of every prompt."""
        prefix = f"{name}{self.path}.mixing."
        found = {re.match(r"\d+", key.removeprefix(prefix)) for key in coefficients if key.startswith(prefix)}
        prompts = sorted({int(number[0]) for number in found if number})
        if not prompts:
            raise KeyError(prefix.rstrip("."))
        names = [f"{prefix}{prompt}" for prompt in prompts]
        weights = [coefficients[name] if name in coefficients else parts_of(name, coefficients) for name in names]
        groups = getattr(block.get_submodule(self.path), "num_key_value_groups", 1)
        return [Mix(tuple(weights), kv_heads=weights[0].shape[0] // groups)]


@dataclass
class Observer:
    """Writes down what one attention module does, tile by tile, in the way that is planned for it."""

    name: str
    record: Tape
    _weights: Tensor | None = field(default=None, init=False)
    _lse: Tensor | None = field(default=None, init=False)
    _query_scale: Tensor | None = field(default=None, init=False)

    def begin(self, attended: Attended) -> None:
        """Make room for what a call gives, before any of its tiles."""
        self._weights = self._lse = self._query_scale = None
        name = f"{self.name}.mixing.{self.record.prompt}"
        heads, n = attended.query.shape[:2]
        first = None
        if self.record.way("mixing", name) == "rebuild":
            first = first_visible(attended.mask, n)
            if first is None:
                warnings.warn(f"{name} is kept: its mask lets queries see more or less than a window", stacklevel=2)
        wide = torch.promote_types(attended.query.dtype, torch.float32)
        if first is None:
            self._weights = self.record.room(name, "mixing", (heads, n, n), wide, attended.query.device)
            return
        self._lse, self._query_scale = (attended.query.new_empty((heads, n), dtype=wide) for _ in range(2))
        parts = {
            "query": attended.query.contiguous(),
            "key": attended.key.contiguous(),
            "lse": self._lse,
            "first": first,
            "key_scale": attended.query.new_ones(n, dtype=wide),
            "query_scale": self._query_scale,
            "scaling": torch.tensor(attended.scaling, dtype=torch.float64),
        }
        if attended.softcap is not None:
            parts["softcap"] = torch.tensor(attended.softcap, dtype=torch.float64)
        for part, value in parts.items():
            self.record.alone(f"{name}.{part}", value)

    def see(self, queries: range, keys: range, scores: Tensor, weights: Tensor) -> None:
        """Write down one tile: scores, (heads, queries, keys, and one more where there is a sink), and weights.

        Keys that the tile leaves out have no weight.
        """
        beyond = max(queries.start + 1 - keys.start, 0)
        if (weights[..., beyond:].triu(queries.start + 1 - keys.start - beyond) > 0).any():
            raise UnsupportedModelError(f"{self.name} attends to later positions; only causal models are served")
        rows = slice(queries.start, queries.stop)
        if self._weights is not None:
            self._weights[:, rows, keys.start : keys.stop] = weights.to(self._weights.device)
        if self._lse is not None and self._query_scale is not None:
            wide = scores.to(self._lse.dtype)
            largest = wide.amax(-1)
            total = (wide - largest[..., None]).exp_().sum(-1)
            lse = largest + total.log()
            self._lse[:, rows] = lse
            # lse is as coarse as its size; the weights are not: what it lost goes to their scale.
            rest = ((lse.double() - largest.double()).exp() / total.double()).to(lse.dtype)
            self._query_scale[:, rows] = rest

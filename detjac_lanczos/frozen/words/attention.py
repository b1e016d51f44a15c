"""Attention with its weights frozen."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from detjac_lanczos.frozen.attention import Attended, Tiles, first_visible, not_causal, observe_attention
from detjac_lanczos.frozen.maps import Map, Mix
from detjac_lanczos.frozen.rebuilt import parts_of
from detjac_lanczos.frozen.sizes import BlockShape, attention_shape
from detjac_lanczos.frozen.tape import Tape
from detjac_lanczos.frozen.words.word import Coefficients, Freeze
from detjac_lanczos.models.adapters import running_module


@dataclass(frozen=True)
class Attend:
    """Values → P values per head, with the attention weights P frozen."""

    path: str

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record P, (heads, n, n), or what it can be made from again."""
        observe_attention(running_module(block.get_submodule(self.path)), partial(_begin, f"{name}{self.path}", record))

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


def _begin(path: str, record: Tape, attended: Attended) -> Tiles:
    """Make room for what a call of the module at a path gives, in the way that is planned, and return what fills it."""
    name = f"{path}.mixing.{record.prompt}"
    heads, n = attended.query.shape[:2]
    first = None
    if record.way("mixing", name) == "rebuild":
        first = first_visible(attended.mask, n)
        if first is None:
            warnings.warn(f"{name} is kept: its mask lets queries see more or less than a window", stacklevel=2)
    wide = torch.promote_types(attended.query.dtype, torch.float32)
    if first is None:
        return partial(keep_weights, path, record.room(name, "mixing", (heads, n, n), wide, attended.query.device))
    lse, query_scale = (attended.query.new_empty((heads, n), dtype=wide) for _ in range(2))
    parts = {
        "query": attended.query.contiguous(),
        "key": attended.key.contiguous(),
        "lse": lse,
        "first": first,
        "key_scale": attended.query.new_ones(n, dtype=wide),
        "query_scale": query_scale,
        "scaling": torch.tensor(attended.scaling, dtype=torch.float64, device="cpu"),
    }
    if attended.softcap is not None:
        parts["softcap"] = torch.tensor(attended.softcap, dtype=torch.float64, device="cpu")
    for part, value in parts.items():
        record.alone(f"{name}.{part}", value)
    return partial(keep_sums, path, lse, query_scale)


def keep_weights(path: str, kept: Tensor, queries: range, keys: range, scores: Tensor, weights: Tensor) -> None:
    """Write the weights of a tile into those of all positions, (heads, n, n)."""
    _require_causal(path, queries, keys, weights)
    kept[:, queries.start : queries.stop, keys.start : keys.stop] = weights.to(kept.device)


def keep_sums(
    path: str, lse: Tensor, query_scale: Tensor, queries: range, keys: range, scores: Tensor, weights: Tensor
) -> None:
    """Write down what makes the weights of a tile from its scores: log-sum-exps and a scale, both (heads, n)."""
    _require_causal(path, queries, keys, weights)
    rows = slice(queries.start, queries.stop)
    wide = scores.to(lse.dtype)
    largest = wide.amax(-1)
    total = (wide - largest[..., None]).exp_().sum(-1)
    rounded = largest + total.log()
    lse[:, rows] = rounded
    # lse is as coarse as its size; the weights are not: what it lost goes to their scale.
    query_scale[:, rows] = ((rounded.double() - largest.double()).exp() / total.double()).to(lse.dtype)


def _require_causal(path: str, queries: range, keys: range, weights: Tensor) -> None:
    """Raise :class:`UnsupportedModelError` where a tile has a weight of a later position."""
    beyond = max(queries.start + 1 - keys.start, 0)
    if (weights[..., beyond:].triu(queries.start + 1 - keys.start - beyond) > 0).any():
        raise not_causal(path)

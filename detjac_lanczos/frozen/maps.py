"""Primitive linear maps on rows, each with its own transpose.

A row is one token position of one column; ``x`` is (R, width) and ``positions`` (R,) says which position of the
prompt each row belongs to, so that a frozen factor stored once per position serves any number of columns. Only `Mix`
lets rows of different positions meet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from typing import Self

import torch
from torch import Tensor

from detjac_kernels import epilogue, mix, mix_transposed
from detjac_lanczos.frozen.layout import Mixing, Tile, runs_of
from detjac_lanczos.frozen.offloaded_factor import OffloadedFactor
from detjac_lanczos.frozen.rebuilt import RebuiltMixing, RebuiltRows
from detjac_lanczos.models.weights import Weight


@dataclass(frozen=True, eq=False)
class RowScale:
    """``x_t → r_t x_t``: the frozen 1/rms of a norm. ``r``: (N,), one factor per position."""

    r: Tensor

    def transpose(self) -> RowScale:
        """Return itself: a diagonal map."""
        return self

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, d) to (R, d)."""
        return (x * self.r[positions, None]).to(x.dtype)


@dataclass(frozen=True, eq=False)
class ColumnScale:
    """``x → x ∘ w``: a norm weight, 1 + weight, or a multiplier. ``w``: (d,)."""

    w: Tensor

    def transpose(self) -> ColumnScale:
        """Return itself: a diagonal map."""
        return self

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, d) to (R, d)."""
        return (x * self.w).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Center:
    """``x → x − mean(x)``: the centering of a LayerNorm."""

    def transpose(self) -> Center:
        """Return itself: an orthogonal projection."""
        return self

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, d) to (R, d)."""
        return x - x.mean(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Gate:
    """``x_t → x_t ∘ g_t``: the frozen factor of a product. ``g``: (N, f), one row per position."""

    g: Tensor | RebuiltRows | OffloadedFactor

    def transpose(self) -> Gate:
        """Return itself: a diagonal map."""
        return self

    def rows(self, positions: Tensor) -> Tensor:
        """Return the factor of every row: (R, f)."""
        return self.g.index_select(0, positions)

    def multiply_(self, x: Tensor, positions: Tensor) -> Tensor:
        """Multiply rows (R, f) in place; columns at one position share a row of the factor."""
        runs = runs_of(positions)
        x.view(-1, runs.width, x.shape[1]).mul_(self.rows(runs.positions)[:, None])
        return x

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, f) to (R, f)."""
        return self.multiply_(x.clone(), positions)


@dataclass(frozen=True, eq=False)
class Linear:
    """``x → x Wᵀ`` (or ``y → y W`` when transposed), with the elementwise neighbours that a GEMM can take along.

    ``scale`` multiplies the input's columns; ``gate``, then ``out_scale``, multiply the output. `fuse` fills them; a
    transpose is taken before.
    """

    weight: Weight
    transposed: bool = False
    scale: Tensor | None = None
    gate: Gate | None = None
    out_scale: Tensor | None = None

    def transpose(self) -> Linear:
        """Return the map of the transposed weight; defined for a bare GEMM, before fusing."""
        if self.scale is not None or self.gate is not None or self.out_scale is not None:
            raise ValueError("transpose a chain before it is fused")
        return replace(self, transposed=not self.transposed)

    def apply(self, x: Tensor, positions: Tensor, add: Tensor | None = None) -> Tensor:
        """(R, d) to (R, f), plus ``add`` (R, f)."""
        product = self.weight.apply_transposed if self.transposed else self.weight.apply
        if self.gate is not None and x.is_cpu:
            out = self.gate.multiply_(product(x, scale=self.scale), positions)
            return epilogue(out, None, self.out_scale, add)
        gate = None if self.gate is None else self.gate.rows(positions)
        return product(x, scale=self.scale, gate=gate, out_scale=self.out_scale, add=add)


@dataclass(frozen=True, eq=False)
class Bias:
    """Add ``factor_t b``: part of the offset, nothing to J.

    ``b``: (d,), or (N, d) where it differs from position to position (position embeddings, clamped entries);
    ``factor``: (N,), left there by folding.
    """

    b: Tensor
    factor: Tensor | None = None

    def scaled(self, r: Tensor) -> Bias:
        """Return the bias times a factor (N,) per position."""
        return replace(self, factor=r if self.factor is None else self.factor * r)

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, d) to (R, d)."""
        b = self.b if self.b.ndim == 1 else self.b[positions]
        if self.factor is None:
            return (x + b).to(x.dtype)
        if x.dtype is b.dtype is self.factor.dtype:
            return torch.addcmul(x, self.factor[positions, None], b)
        return (x + self.factor[positions, None] * b).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Mix:
    """Frozen attention: per head, ``X → P V``, with grouped heads.

    ``probabilities`` holds one (heads, n, n) tensor per prompt; heads of a group, ``heads / kv_heads`` neighbours,
    share their values. The input is (R, kv_heads · width), the output (R', heads · width); a transposed map exchanges
    them.
    """

    probabilities: tuple[Tensor | RebuiltMixing | OffloadedFactor, ...]
    kv_heads: int
    transposed: bool = False

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.probabilities[0].shape[0]

    def transpose(self) -> Mix:
        """Return Pᵀ, summed over the heads of a group."""
        return replace(self, transposed=not self.transposed)

    def apply(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Mix the rows of every tile of ``mixing``: (R_keys, ·) to (R_queries, ·), or back when transposed.

        The input may also come head by head, (heads, R, width).
        """
        heads_in, heads_out = (self.heads, self.kv_heads) if self.transposed else (self.kv_heads, self.heads)
        width = x.shape[2] if x.ndim == 3 else x.shape[1] // heads_in
        out = x.new_empty(mixing.key_rows if self.transposed else mixing.query_rows, heads_out * width)
        for tile in mixing.tiles:
            before, after = (tile.queries, tile.keys) if self.transposed else (tile.keys, tile.queries)
            dtype = self.probabilities[tile.prompt].dtype
            length = len(before.positions)
            padded = x.new_zeros((heads_in * length * tile.columns, width), dtype=dtype)
            if x.ndim == 3:
                padded.view(heads_in, -1, width).index_copy_(1, before.cells, x[:, before.rows].to(dtype))
            else:
                at = before.cells_by_head(heads_in).view(-1)
                padded.index_copy_(0, at, x[before.rows].reshape(-1, width).to(dtype))
            by_group = padded.view(self.kv_heads, heads_in // self.kv_heads * length, tile.columns * width)
            mixed = self._product(tile, by_group).view(-1, width)
            del padded, by_group
            at, rows_out = after.cells_by_head(heads_out).view(-1), out[after.rows].view(-1, width)
            if mixed.dtype is out.dtype:
                torch.index_select(mixed, 0, at, out=rows_out)
            else:
                rows_out.copy_(mixed.index_select(0, at))
            del mixed
        return out

    def _product(self, tile: Tile, x: Tensor) -> Tensor:
        """(kv_heads, keys, columns) to (kv_heads, group · queries, columns), or back."""
        p, queries, keys = self.probabilities[tile.prompt], tile.queries.positions, tile.keys.positions
        if isinstance(p, RebuiltMixing):
            return p.product(queries, keys, x, self.transposed)
        with p.held() if isinstance(p, OffloadedFactor) else nullcontext(p) as here:
            # a view where the tile covers the whole prompt
            part = here[:, queries.start : queries.stop, keys.start : keys.stop]
            part = part.reshape(self.kv_heads, -1, len(keys))
            return mix_transposed(part, x) if self.transposed else mix(part, x)


class Nested(ABC):
    """A map made of chains that act on each row alone."""

    chains: tuple[tuple[Map, ...], ...]

    @abstractmethod
    def with_chains(self, chains: Sequence[tuple[Map, ...]]) -> Self:
        """Return the same map of other chains."""

    @abstractmethod
    def row_factor(self, r: Tensor, index: int) -> Tensor:
        """Return a factor per position (N,) as the chain ``index`` counts positions."""

    @abstractmethod
    def apply(self, x: Tensor, positions: Tensor, add: Tensor | None = None) -> Tensor:
        """(R, d) to (R, f), plus ``add`` (R, f)."""

    def transpose(self) -> Self:
        """Return the same map of the transposed chains."""
        return self.with_chains([transpose(chain) for chain in self.chains])


@dataclass(frozen=True, eq=False)
class Sum(Nested):
    """The sum of several chains on the same rows: the mean of two linear maps, a shared expert beside routed ones."""

    chains: tuple[tuple[Map, ...], ...]

    def with_chains(self, chains: Sequence[tuple[Map, ...]]) -> Sum:
        """Return the sum of other chains."""
        return Sum(tuple(chains))

    def row_factor(self, r: Tensor, index: int) -> Tensor:
        """Return the factor itself: every chain sees every position."""
        return r

    def apply(self, x: Tensor, positions: Tensor, add: Tensor | None = None) -> Tensor:
        """(R, d) to (R, f), plus ``add`` (R, f)."""
        first, *others = self.chains
        return reduce(
            lambda total, chain: apply_rowwise(chain, x, positions, total),
            others,
            apply_rowwise(first, x, positions, add),
        )


Map = RowScale | ColumnScale | Center | Gate | Linear | Bias | Mix | Nested


def device_of(chain: Sequence[Map]) -> torch.device | None:
    """Return where the weights and factors of a chain lie, all on one device; None where it has none but numbers."""
    for step in chain:
        for value in vars(step).values():
            if hasattr(value, "device") and len(value.shape) > 0:
                device: torch.device = value.device
                return device
    return None


def steps_in(chain: Sequence[Map]) -> Iterator[Map]:
    """Yield the maps of a chain, those of nested chains in their place."""
    for step in chain:
        if isinstance(step, Nested):
            for part in step.chains:
                yield from steps_in(part)
        else:
            yield step


def mixes(chain: Sequence[Map]) -> bool:
    """Tell whether rows of different positions meet in a chain."""
    return any(isinstance(step, Mix) for step in chain)


def apply_rowwise(chain: Sequence[Map], x: Tensor, positions: Tensor, add: Tensor | None = None) -> Tensor:
    """Run a chain without mixing on rows: (R, d) to (R, f), plus ``add`` (R, f), which rides on a last GEMM.

    `add` may be overwritten: the result may reuse its memory.
    """
    if not chain:
        return x.clone() if add is None else add.add_(x)
    last = len(chain) - 1
    for index, step in enumerate(chain):
        if isinstance(step, Mix):
            raise ValueError("a mixing needs the segments of its rows; this chain acts on each row alone")
        if index == last and isinstance(step, Linear | Nested):
            return step.apply(x, positions, add)
        x = step.apply(x, positions)
    return x if add is None else add.add_(x)


def apply_from_afar(chain: Sequence[Map], x: Tensor, positions: Tensor) -> Tensor:
    """Run a chain without mixing on rows of another device, and return there: (R, d) to (R, f)."""
    device = device_of(chain) or x.device
    return apply_rowwise(chain, x.to(device), positions.to(device)).to(x.device)


def transpose(chain: Sequence[Map]) -> tuple[Map, ...]:
    """Return the transpose of the linear part of a chain: reversed, each map transposed, biases dropped."""
    return tuple(step.transpose() for step in reversed(chain) if not isinstance(step, Bias))

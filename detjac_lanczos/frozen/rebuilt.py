"""Frozen factors that are not stored: made again, in every sweep, from the smaller tensors they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from detjac_kernels import mix_rebuilt, mix_rebuilt_transposed
from detjac_lanczos.models.held import Held


@dataclass(frozen=True, eq=False)
class RebuiltMixing:
    """Attention weights of one prompt, (heads, n, n), from queries, keys and log Σ exp(score).

    Attributes
    ----------
    query : Tensor, shape (heads, n, head_dim)
    key : Tensor, shape (kv_heads, n, head_dim)
    lse : Tensor, shape (heads, n)
    first : Tensor, shape (n,)
        The first key each query sees; it sees all from there to its own.
    key_scale : Tensor, shape (n,)
        The row scales that folding moved in from the side of the values.
    query_scale : Tensor, shape (heads, n)
        Those from the other side, what `lse` lost by rounding, and 0 for a head that is switched off.
    scaling : Tensor, shape ()
    softcap : Tensor, shape (), optional
    """

    query: Tensor
    key: Tensor
    lse: Tensor
    first: Tensor
    key_scale: Tensor
    query_scale: Tensor
    scaling: Tensor
    softcap: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(heads, n, n): of the weights."""
        heads, n, _ = self.query.shape
        return heads, n, n

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights with their scales."""
        return self.lse.dtype

    @cached_property
    def _numbers(self) -> tuple[float, float | None]:
        return float(self.scaling), None if self.softcap is None else float(self.softcap)

    def scale_keys(self, r: Tensor) -> None:
        """Multiply column j of the weights by r_j, in place: r (n,)."""
        self.key_scale.mul_(r)

    def scale_queries(self, r: Tensor) -> None:
        """Multiply row i of the weights by r_i, in place: r (n,)."""
        self.query_scale.mul_(r)

    def product(self, queries: range, keys: range, x: Tensor, transposed: bool) -> Tensor:
        """Return P x for a range of queries and keys, (kv_heads, group · queries, columns), or Pᵀ x."""
        rows, columns = slice(queries.start, queries.stop), slice(keys.start, keys.stop)
        scaling, softcap = self._numbers
        return (mix_rebuilt_transposed if transposed else mix_rebuilt)(
            self.query[:, rows],
            self.key[:, columns],
            self.lse[:, rows],
            self.first[rows] - keys.start,
            x,
            scaling=scaling,
            softcap=softcap,
            key_scale=self.key_scale[columns],
            query_scale=self.query_scale[:, rows],
            start=queries.start - keys.start,
        )


@dataclass(frozen=True, eq=False)
class RebuiltRows:
    """One frozen factor for every position, (N, f), from the narrower rows it is a function of.

    Attributes
    ----------
    inputs : Tensor, shape (N, d)
        What enters the projections that the factor is made of.
    scale : Tensor, shape (N,)
        The row scales that folding moved in.
    make : callable
        From rows of ``inputs`` (m, d) to their factors (m, f).
    width : int
        f.
    sources : tuple of Held
        Where weights of those projections are read from.
    """

    inputs: Tensor
    scale: Tensor
    make: Callable[[Tensor], Tensor]
    width: int
    sources: tuple[Held[Any, Any], ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(N, f): of the factor."""
        return len(self.inputs), self.width

    @property
    def device(self) -> torch.device:
        """Where it is made."""
        return self.inputs.device

    def mul_(self, r: Tensor) -> None:
        """Multiply the factor of every position, in place: r (N, 1)."""
        self.scale.mul_(r[:, 0])

    def index_select(self, dim: int, positions: Tensor) -> Tensor:
        """Return the factor of every row: (R, f), from positions (R,).

        Rows lie position by position: each run of one position is made once.
        """
        found, rows = positions.unique_consecutive(return_inverse=True)
        factor = self.make(self.inputs.index_select(0, found)).to(self.scale.dtype)
        factor *= self.scale.index_select(0, found)[:, None]
        return factor if len(found) == len(positions) else factor.index_select(0, rows)


def parts_of(name: str, coefficients: Mapping[str, Tensor]) -> RebuiltMixing:
    """Return the attention weights whose parts were recorded under a name."""
    parts = {part.name: f"{name}.{part.name}" for part in fields(RebuiltMixing)}
    return RebuiltMixing(**{part: coefficients[key] for part, key in parts.items() if key in coefficients})

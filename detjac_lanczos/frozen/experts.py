"""Routed experts: each position's row goes through the chains of the experts it was sent to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from detjac_lanczos.frozen.layout import runs_of
from detjac_lanczos.frozen.maps import Map, Nested, apply_rowwise

Visitors = tuple[int, list[tuple[tuple[Map, ...], Tensor, Tensor]]]
"""Rows in a run, and for each expert its chain, the runs it takes, and the place of each row among its positions."""


@dataclass(frozen=True, eq=False)
class Experts(Nested):
    """``x_t → Σ_e chain_e(x_t)`` over the experts e that position t was routed to.

    Attributes
    ----------
    chains : tuple of chains
        One per expert in use; routing weights are row scales in it. Frozen factors of a chain run over the expert's own
        positions.
    routed : tuple of Tensor
        Positions of each expert, ascending: (m_e,) int64.
    width : int
        d, for rows that no expert takes.
    """

    chains: tuple[tuple[Map, ...], ...]
    routed: tuple[Tensor, ...]
    width: int
    _visits: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, init=False, repr=False)

    def with_chains(self, chains: Sequence[tuple[Map, ...]]) -> Experts:
        """Return other chains on the same routes."""
        return Experts(tuple(chains), self.routed, self.width)

    def row_factor(self, r: Tensor, index: int) -> Tensor:
        """Return the factors of the positions routed to one expert."""
        return r[self.routed[index]]

    def apply(self, x: Tensor, positions: Tensor, add: Tensor | None = None) -> Tensor:
        """(R, d) to (R, d), plus ``add`` (R, d), where the result then lies."""
        out = x.new_zeros(len(x), self.width) if add is None else add
        width, visitors = self._visitors(positions)
        x_runs, out_runs = x.unflatten(0, (-1, width)), out.unflatten(0, (-1, width))
        for chain, runs, place in visitors:
            part = apply_rowwise(chain, x_runs.index_select(0, runs).flatten(0, 1), place)
            out_runs.index_add_(0, runs, part.unflatten(0, (-1, width)))
        return out

    def _visitors(self, positions: Tensor) -> Visitors:
        """Return how many rows a run has, and each expert that rows at these positions meet.

        A solver sweeps the same positions again and again, in the same tensor: they are sorted once for each.
        """
        visits = self._visits.get(positions)
        if visits is None:
            width = runs_of(positions).width
            visitors = []
            for chain, routed in zip(self.chains, self.routed, strict=True):
                place = torch.searchsorted(routed, positions).clamp_(max=len(routed) - 1)
                rows = (routed[place] == positions).nonzero()[:, 0]
                if len(rows):
                    visitors.append((chain, rows[::width] // width, place[rows]))
            visits = self._visits[positions] = width, visitors
        return visits

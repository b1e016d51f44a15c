"""Routed experts: each position's row goes through the chains of the experts it was sent to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from detjac_lanczos.frozen.maps import Map, Nested, apply_rowwise


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
    width_in, width_out : int
        d and f, for rows that no expert takes.
    """

    chains: tuple[tuple[Map, ...], ...]
    routed: tuple[Tensor, ...]
    width_in: int
    width_out: int
    _visits: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary, init=False, repr=False)

    def rebuilt(self, chains: Sequence[tuple[Map, ...]]) -> Experts:
        """Return other chains on the same routes."""
        return Experts(tuple(chains), self.routed, self.width_in, self.width_out)

    def transpose(self) -> Experts:
        """Return the transposed chains on the same routes."""
        transposed = super().transpose()
        return Experts(transposed.chains, self.routed, self.width_out, self.width_in)

    def row_factor(self, r: Tensor, index: int) -> Tensor:
        """Return the factors of the positions routed to one expert."""
        return r[self.routed[index]]

    def apply(self, x: Tensor, positions: Tensor, add: Tensor | None = None) -> Tensor:
        """(R, d) to (R, f), plus ``add`` (R, f), where the result then lies."""
        out = x.new_zeros(len(x), self.width_out) if add is None else add
        for chain, rows, place in self._visitors(positions):
            out.index_add_(0, rows, apply_rowwise(chain, x.index_select(0, rows), place))
        return out

    def _visitors(self, positions: Tensor) -> list[tuple[tuple[Map, ...], Tensor, Tensor]]:
        """Return the chain of each expert that rows at these positions meet, the rows, and their place in its own.

        A solver sweeps the same positions again and again, in the same tensor: they are sorted once for each.
        """
        if positions not in self._visits:
            visitors = []
            for chain, routed in zip(self.chains, self.routed, strict=True):
                place = torch.searchsorted(routed, positions).clamp_(max=len(routed) - 1)
                rows = (routed[place] == positions).nonzero()[:, 0]
                if len(rows):
                    visitors.append((chain, rows, place[rows]))
            self._visits[positions] = visitors
        return self._visits[positions]

"""What products with Jacobians need of a network: all rows of many segments, once through it, either way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from detjac_lanczos.frozen.layout import Layout, Segment
from detjac_lanczos.frozen.sweep import Program, forward, transposed


class Sweeps(Protocol):
    """Products of the Jacobians between one source and one target, for many segments at once.

    Source rows lie segment by segment, position by position and column by column; target rows segment by segment.
    """

    @property
    def route(self) -> str:
        """How products are computed: through the maps of the "frozen" network, or by "autograd"."""

    @property
    def d_in(self) -> int:
        """Width of the source."""

    @property
    def d_out(self) -> int:
        """Width of the target."""

    def forward(self, segments: Sequence[Segment], rows: Tensor) -> Tensor:
        """(Σ source rows, d_in) to (Σ widths, d_out)."""

    def transposed(self, segments: Sequence[Segment], rows: Tensor) -> Tensor:
        """(Σ widths, d_out) to (Σ source rows, d_in)."""

    def cost(self, segment: Segment) -> float:
        """Row-sweeps of one column of a segment, either way."""


class AffineSweeps(Sweeps, Protocol):
    """Sweeps of a map that is affine as a whole: the Jacobians are its slope."""

    def affine(self, segment: Segment, rows: Tensor) -> Tensor:
        """Return the map itself at joint source rows, (length · width, d_in): (width, d_out)."""


class FrozenSweeps:
    """Sweeps through the maps of a frozen network."""

    route = "frozen"

    def __init__(self, program: Program, lengths: Sequence[int], device: torch.device) -> None:
        self.program, self.lengths, self.device = program, lengths, device
        self.d_in, self.d_out = program.d_in, program.d_out
        self._layouts: dict[tuple[Segment, ...], Layout] = {}

    def forward(self, segments: Sequence[Segment], rows: Tensor) -> Tensor:
        """(Σ source rows, d_in) to (Σ widths, d_out)."""
        return forward(self.program, rows, self._layout(segments))

    def transposed(self, segments: Sequence[Segment], rows: Tensor) -> Tensor:
        """(Σ widths, d_out) to (Σ source rows, d_in)."""
        return transposed(self.program, rows, self._layout(segments))

    def affine(self, segment: Segment, rows: Tensor) -> Tensor:
        """Return the map itself at joint source rows, (length · width, d_in): (width, d_out)."""
        return forward(self.program, rows, self._layout([segment]), affine=True)

    def cost(self, segment: Segment) -> float:
        """Row-sweeps of one column of a segment, either way."""
        return self.program.row_sweeps(segment.length)

    def _layout(self, segments: Sequence[Segment]) -> Layout:
        key = tuple(segments)
        layout = self._layouts.get(key)
        if layout is None:
            layout = Layout(key, self.lengths, self.device)
            # A solver asks for the same segments again and again, then for others and never for these.
            self._layouts = {key: layout}
        return layout

"""Which rows a sweep carries: segments of positions × columns, packed one after another.

The Jacobian block of input token i at output position p involves positions i..p only. A segment is one such block
with a width of columns; all segments of a call lie in one tensor of rows, position by position and column by column,
so that every weight meets all of them in one GEMM. After the last mixing only the output position of each segment is
left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import gcd

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

PADDED_CELLS = 16384
"""Positions × columns that one mixing product may pad to: bounds the padding and the scratch of long prompts."""


@dataclass(frozen=True)
class Segment:
    """Positions ``start..position`` of a prompt, ``width`` columns; input enters at ``start``, or at all (joint)."""

    prompt: int
    start: int
    position: int
    width: int
    joint: bool = False

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.position - self.start + 1

    @property
    def rows(self) -> int:
        """Number of rows before pruning."""
        return self.length * self.width

    @property
    def source_rows(self) -> int:
        """Number of rows the input enters at."""
        return self.rows if self.joint else self.width


@dataclass(frozen=True, eq=False)
class Side:
    """The rows of a tile before its mixing, or after it, in a rectangle of ``positions`` × ``columns``.

    ``rows`` are those among all rows; ``cells`` (R,) say where in the rectangle, (positions · columns,), each lies.
    """

    positions: range
    columns: int
    rows: slice
    cells: Tensor
    _by_head: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def cells_by_head(self, heads: int) -> Tensor:
        """Return where in (heads · positions · columns,) the part of each row that a head has lies: (R, heads)."""
        if heads not in self._by_head:
            begin = torch.arange(heads, device=self.cells.device) * (len(self.positions) * self.columns)
            self._by_head[heads] = self.cells[:, None] + begin
        return self._by_head[heads]


@dataclass(frozen=True, eq=False)
class Tile:
    """Segments of one prompt that are mixed in one product, padded to rectangles of positions × columns."""

    prompt: int
    keys: Side
    queries: Side
    columns: int


@dataclass(frozen=True, eq=False)
class Mixing:
    """The tiles of one mixing, from ``key_rows`` rows to ``query_rows`` rows."""

    tiles: tuple[Tile, ...]
    key_rows: int
    query_rows: int


@dataclass(frozen=True, eq=False)
class Runs:
    """Rows at one position that lie side by side, ``width`` a run: the columns that all segments have in common.

    ``positions``: (R / width,), one for each run.
    """

    width: int
    positions: Tensor


_runs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def runs_of(positions: Tensor) -> Runs:
    """Return the runs of rows at these positions (R,); found once for a tensor, and kept as long as it."""
    found: Runs | None = _runs.get(positions)
    if found is None:
        width = gcd(*positions.unique_consecutive(return_counts=True)[1].tolist()) or 1
        found = _runs[positions] = Runs(width, positions[::width].clone())
    return found


class Layout:
    """Index tensors of one set of segments.

    Parameters
    ----------
    segments : sequence of Segment, those of one prompt beside one another
    prompt_lengths : sequence of int
        Positions of each prompt; frozen factors of all prompts lie one after another.
    device : torch.device
    """

    def __init__(self, segments: Sequence[Segment], prompt_lengths: Sequence[int], device: torch.device) -> None:
        self.segments, self.prompt_lengths = tuple(segments), tuple(prompt_lengths)
        self.device = device
        self._elsewhere: dict[torch.device, Layout] = {}
        self._prompt_start = tuple(accumulate(prompt_lengths, initial=0))
        self.rows = sum(segment.rows for segment in self.segments)

    def on(self, device: torch.device | None) -> Layout:
        """Return this layout with its index tensors on a device."""
        if device is None or device == self.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = Layout(self.segments, self.prompt_lengths, device)
        return self._elsewhere[device]

    @cached_property
    def positions(self) -> Tensor:
        """Position, counted over all prompts, of every row: (R,)."""
        parts = [
            torch.arange(s.start, s.position + 1, device=self.device).repeat_interleave(s.width)
            + self._prompt_start[s.prompt]
            for s in self.segments
        ]
        return torch.cat(parts)

    @cached_property
    def pruned_positions(self) -> Tensor:
        """Position of every row that is left after pruning: (Σ widths,)."""
        return self.positions[self.kept]

    @cached_property
    def kept(self) -> Tensor:
        """Rows at the output position of their segment: (Σ widths,)."""
        offset, parts = 0, []
        for s in self.segments:
            offset += s.rows
            parts.append(torch.arange(offset - s.width, offset, device=self.device))
        return torch.cat(parts)

    @cached_property
    def source(self) -> Tensor:
        """Rows the input enters at (and a transposed sweep leaves from), segment by segment."""
        offset, parts = 0, []
        for s in self.segments:
            parts.append(torch.arange(offset, offset + s.source_rows, device=self.device))
            offset += s.rows
        return torch.cat(parts)

    @cached_property
    def square(self) -> Mixing:
        """Mixing that keeps all rows."""
        return self._mixing(pruned=False)

    @cached_property
    def pruning(self) -> Mixing:
        """Mixing after which only the output positions are left."""
        return self._mixing(pruned=True)

    def _mixing(self, pruned: bool) -> Mixing:
        tiles = []
        key_start = query_start = 0
        for group in self._groups(pruned):
            lo, hi = min(s.start for s in group), max(s.position for s in group) + 1
            queries = range(group[0].position, group[0].position + 1) if pruned else range(lo, hi)
            columns = sum(s.width for s in group)
            key_cells, query_cells, column = [], [], 0
            for s in group:
                at = torch.arange(s.width, device=self.device) + column
                positions = torch.arange(s.start - lo, s.position + 1 - lo, device=self.device)
                cells = (positions[:, None] * columns + at).flatten()
                key_cells.append(cells)
                query_cells.append(at if pruned else cells)
                column += s.width
            keys, outs = torch.cat(key_cells), torch.cat(query_cells)
            tiles.append(
                Tile(
                    prompt=group[0].prompt,
                    keys=Side(range(lo, hi), columns, slice(key_start, key_start + len(keys)), keys),
                    queries=Side(queries, columns, slice(query_start, query_start + len(outs)), outs),
                    columns=columns,
                )
            )
            key_start += len(keys)
            query_start += len(outs)
        return Mixing(tuple(tiles), key_start, query_start)

    def _groups(self, pruned: bool) -> list[list[Segment]]:
        """Neighbouring segments of one prompt (and one output position, when pruning) within the padding budget."""
        groups: list[list[Segment]] = []
        for s in self.segments:
            group = groups[-1] if groups else None
            if group is not None and group[0].prompt == s.prompt and (not pruned or group[0].position == s.position):
                lo = min(s.start, *(g.start for g in group))
                hi = max(s.position, *(g.position for g in group)) + 1
                if (hi - lo) * (s.width + sum(g.width for g in group)) <= PADDED_CELLS:
                    group.append(s)
                    continue
            groups.append([s])
        return groups

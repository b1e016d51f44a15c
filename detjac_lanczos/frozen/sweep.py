"""Sweeps: all rows through the frozen blocks, forwards or transposed.

A `Program` is the list of stages between a source and a target. Everything up to its last mixing runs on all rows;
that mixing keeps only the output position of each segment, and the rest runs on those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from torch import Tensor

from detjac_kernels import keep_freed_memory
from detjac_lanczos.frozen.fold import fuse
from detjac_lanczos.frozen.layout import Layout, Mixing, runs_of
from detjac_lanczos.frozen.mapped import expect, let_go
from detjac_lanczos.frozen.maps import Bias, Linear, Map, Mix, Nested, apply_rowwise, mixes, steps_in, transpose
from detjac_lanczos.frozen.precision import in_own_precision, require_exact_products
from detjac_lanczos.frozen.sources import sources_of
from detjac_lanczos.frozen.stage import Stage
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.streaming import in_turn
from detjac_lanczos.models.unmoved import Unmoved
from detjac_lanczos.models.weights import PerHeadWeight

ROWS_AT_ONCE = 1024
"""Rows that go through a chain without mixing together: enough to run its GEMMs at full speed."""


def height_of_parts(rows: int, width: int) -> int:
    """Return how many of ``rows`` go through such a chain together: equal parts, that cut no run of a usual width."""
    height = -(-rows // -(-rows // ROWS_AT_ONCE))
    return height if width > ROWS_AT_ONCE // 8 else height + -height % width


@dataclass(frozen=True)
class Program:
    """Stages from a source to a target.

    Parameters
    ----------
    stages : tuple of Stage
    d_in, d_out : int
        Widths of the source and of the target.
    blocks : int
        Blocks of the whole network: the unit in which work is counted.
    weights : tuple of Unmoved
        What must be as it was when the stages were made, in every sweep.
    """

    stages: tuple[Stage, ...]
    d_in: int
    d_out: int
    blocks: int
    weights: tuple[Unmoved, ...] = ()

    @cached_property
    def last_mixing(self) -> int:
        """Index of the stage that prunes; −1 where positions never meet."""
        return max((i for i, stage in enumerate(self.stages) if stage.mixes), default=-1)

    @cached_property
    def chains(self) -> tuple[tuple[tuple[Map, ...], ...], ...]:
        """Fused forward chains, by stage and branch."""
        return tuple(tuple(fuse(linear_part(b.chain)) for b in stage.branches) for stage in self.stages)

    @cached_property
    def transposed_chains(self) -> tuple[tuple[tuple[Map, ...], ...], ...]:
        """Fused transposed chains, by stage and branch."""
        return tuple(tuple(fuse(transpose(b.chain)) for b in stage.branches) for stage in self.stages)

    @cached_property
    def affine_chains(self) -> tuple[tuple[tuple[Map, ...], ...], ...]:
        """Fused forward chains with their biases, by stage and branch."""
        return tuple(tuple(fuse(b.chain) for b in stage.branches) for stage in self.stages)

    @cached_property
    def turns(self) -> tuple[tuple[range, tuple[Held[Any, Any], ...]], ...]:
        """Stages of one block after another, each with what it needs from elsewhere: weights, frozen factors."""
        turns = []
        start = 0
        for _, members in groupby(self.stages, key=lambda stage: stage.block):
            stages = tuple(members)
            sources = {id(s): s for stage in stages for branch in stage.branches for s in sources_of(branch.chain)}
            turns.append((range(start, start + len(stages)), tuple(sources.values())))
            start += len(stages)
        return tuple(turns)

    @property
    def affine(self) -> bool:
        """Whether any map has a bias, so that the offset is not zero."""
        chains = (branch.chain for stage in self.stages for branch in stage.branches)
        return any(isinstance(step, Bias) for chain in chains for step in steps_in(chain))

    def row_sweeps(self, length: int) -> float:
        """Work of one column over ``length`` positions: rows times the share of the network's blocks they pass."""
        counted = range(self.blocks)
        full = {stage.block for stage in self.stages[: self.last_mixing + 1] if stage.block in counted}
        pruned = {stage.block for stage in self.stages if stage.block in counted} - full
        if self.last_mixing >= 0:
            turning = self.stages[self.last_mixing].block
            full, pruned = full - {turning}, pruned | {turning}
        return (length * len(full) + len(pruned)) / self.blocks


def linear_part(chain: Sequence[Map]) -> tuple[Map, ...]:
    """Return a chain without its biases, those of nested chains included."""
    steps = (
        step.with_chains([linear_part(part) for part in step.chains]) if isinstance(step, Nested) else step
        for step in chain
    )
    return tuple(step for step in steps if not isinstance(step, Bias))


@in_own_precision
def forward(program: Program, rows: Tensor, layout: Layout, *, affine: bool = False) -> Tensor:
    """Apply the frozen network.

    Parameters
    ----------
    program : Program
    rows : Tensor, shape (Σ source rows, d_in)
        The input of each segment, in the order of ``layout.source``.
    layout : Layout
    affine : bool
        Add the biases on the way.

    Returns
    -------
    Tensor, shape (Σ widths, d_out)

    Raises
    ------
    ModelError
        If the weights have moved since the program was made.
    """
    _begin(program, rows)
    if len(rows) == layout.rows:
        x = rows.clone()
    else:
        x = rows.new_zeros(layout.rows, program.d_in)
        x.index_copy_(0, layout.source, rows)
    if program.last_mixing < 0:
        x = x.index_select(0, layout.kept)
    all_chains = program.affine_chains if affine else program.chains
    for index in _stages_in_turn(program):
        stage, chains = program.stages[index], all_chains[index]
        here = layout.on(stage.device)
        x = x.to(here.device)
        _turn_pages(program.stages, index, 1)
        prunes = index == program.last_mixing
        positions = here.positions if index <= program.last_mixing else here.pruned_positions
        mixing = here.pruning if prunes else here.square
        out = here.pruned_positions if prunes else positions
        kept = x.index_select(0, here.kept) if prunes else x
        total = _free(kept, chains) if stage.residual else None
        for chain in chains:
            if prunes and not mixes(chain):
                total = _run(chain, kept, out, out, mixing, total)
            else:
                total = _run(chain, x, positions, out, mixing, total)
        assert total is not None, "a stage has a residual or a branch"
        x = total
    return x.to(layout.device)


@in_own_precision
def unpruned(
    program: Program, rows: Tensor, layout: Layout, see: Callable[[str, Tensor], None] | None = None
) -> Tensor:
    """Apply the frozen network with its biases, and give the target at every position.

    Parameters
    ----------
    program, layout
        As in `forward`.
    rows : Tensor, shape (Σ rows, d_in)
        The input at every position of each segment.
    see : callable, optional
        Given the name and the values, (Σ rows, width), of each branch on the way.

    Returns
    -------
    Tensor, shape (Σ rows, d_out)
    """
    _begin(program, rows)
    x = rows
    for index in _stages_in_turn(program):
        stage, chains = program.stages[index], program.affine_chains[index]
        here = layout.on(stage.device)
        x = x.to(here.device)
        _turn_pages(program.stages, index, 1)
        total = x.clone() if stage.residual else None
        for branch, chain in zip(stage.branches, chains, strict=True):
            values = _run(chain, x, here.positions, here.positions, here.square, None)
            if see is not None:
                see(branch.name, values)
            total = values.clone() if total is None else total.add_(values)
        assert total is not None, "a stage has a residual or a branch"
        x = total
    return x.to(layout.device)


@in_own_precision
def transposed(program: Program, rows: Tensor, layout: Layout) -> Tensor:
    """Apply the transpose of the frozen network.

    Parameters
    ----------
    program : Program
    rows : Tensor, shape (Σ widths, d_out)
        Cotangents of each segment at its output position.
    layout : Layout

    Returns
    -------
    Tensor, shape (Σ source rows, d_in), in the order of ``layout.source``
    """
    _begin(program, rows)
    y = rows.clone()
    for index in _stages_in_turn(program, backwards=True):
        stage, chains = program.stages[index], program.transposed_chains[index]
        here = layout.on(stage.device)
        y = y.to(here.device)
        _turn_pages(program.stages, index, -1)
        prunes = index == program.last_mixing
        positions = here.positions if index < program.last_mixing else here.pruned_positions
        mixing = here.pruning if prunes else here.square
        out = here.positions if prunes else positions
        total = _free(y, chains) if stage.residual else None
        mixing_chains = [c for c in chains if mixes(c)]
        for chain in chains:
            if not prunes or chain not in mixing_chains:
                total = _run(chain, y, positions, out, mixing, total)
        if prunes:
            total = None if total is None else _spread(total, here)
            for chain in mixing_chains:
                total = _run(chain, y, positions, out, mixing, total)
        assert total is not None, "a stage has a residual or a branch"
        y = total
    y = y.to(layout.device)
    if program.last_mixing < 0:
        y = _spread(y, layout)
    return y if len(layout.source) == layout.rows else y.index_select(0, layout.source)


def _begin(program: Program, rows: Tensor) -> None:
    require_exact_products(rows.dtype, rows.device)
    for weights in program.weights:
        weights.require_unwritten()
    keep_freed_memory()


def _turn_pages(stages: Sequence[Stage], index: int, step: int) -> None:
    """Read ahead what the next stage has in files, and let go of what the last one had; the ends of a sweep stay."""
    if 0 <= index - step < len(stages):
        let_go(stages[index - step].mapped)
    if 0 <= index + step < len(stages):
        expect(stages[index + step].mapped)


def _stages_in_turn(program: Program, *, backwards: bool = False) -> Iterator[int]:
    """Yield the stages in order; while one runs, what its block needs is here and what the next needs is read."""
    turns = program.turns[::-1] if backwards else program.turns
    for turn in in_turn([sources for _, sources in turns]):
        stages = turns[turn][0]
        yield from reversed(stages) if backwards else stages


def _free(stream: Tensor, chains: Sequence[Sequence[Map]]) -> Tensor:
    """Return what the branches are added to, free to be overwritten: the stream, or a copy while they still read it."""
    return stream if len(chains) == 1 and len(chains[0]) > 1 else stream.clone()


def _spread(y: Tensor, layout: Layout) -> Tensor:
    full = y.new_zeros(layout.rows, y.shape[1])
    full.index_copy_(0, layout.kept, y)
    return full


def _run(chain: Sequence[Map], x: Tensor, positions: Tensor, out: Tensor, mixing: Mixing, add: Tensor | None) -> Tensor:
    """Run one chain; rows change from ``positions`` to ``out`` at its mixing. ``add`` rides on a last GEMM.

    `add` may be overwritten: the result may reuse its memory.

    A chain without mixing acts on each row alone, so many rows go through it a part at a time: its wide middle then
    stays in the processor's cache and is never as tall as the whole sweep.
    """
    if x.shape[0] <= ROWS_AT_ONCE or mixes(chain):
        return _run_at_once(chain, x, positions, out, mixing, add)
    result = add
    height = height_of_parts(len(x), runs_of(positions).width)
    for start in range(0, len(x), height):
        here = slice(start, start + height)
        extra = None if add is None else add[here]
        part = _run_at_once(chain, x[here], positions[here], positions[here], mixing, extra)
        if result is None:
            result = part.new_empty(len(x), part.shape[1])
        if part is not extra:
            result[here] = part
    assert result is not None, "there are rows"
    return result


def _run_at_once(
    chain: Sequence[Map], x: Tensor, positions: Tensor, out: Tensor, mixing: Mixing, add: Tensor | None
) -> Tensor:
    for index, step in enumerate(chain):
        if isinstance(step, Mix):
            mixed = step.apply(_values(chain[:index], x, positions), mixing)
            return apply_rowwise(chain[index + 1 :], mixed, out, add)
    return apply_rowwise(chain, x, positions, add)


def _values(chain: Sequence[Map], x: Tensor, positions: Tensor) -> Tensor:
    """Run a chain up to a mixing: (R, d) to (R, heads · width), or (heads, R, width) if its last weight has heads."""
    match chain:
        case (*before, Linear(PerHeadWeight() as weight, False, scale, None, None)) if not x.is_cpu:
            return weight.product_by_head(apply_rowwise(before, x, positions), scale)
    return apply_rowwise(chain, x, positions)

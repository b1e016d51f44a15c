"""What a job holds besides the weights, and what to change where that is too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import NamedTuple

import torch

from detjac_lanczos.budget import format_bytes
from detjac_lanczos.frozen.peak import sweep_bytes
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.frozen.sizes import NetworkShape
from detjac_lanczos.frozen.ways import Kind, Rates, Way
from detjac_lanczos.solvers.chunks import chunk_width, turns
from detjac_lanczos.solvers.forecast import forecast
from detjac_lanczos.solvers.memory import finishing_bytes, judging_bytes, result_bytes, room_for, searching_bytes
from detjac_lanczos.solvers.rounding import working_dtype
from detjac_lanczos.solvers.width import expected_columns, expected_room

_JOINT = 1.35
"""Columns that the joint operator takes over those of one token's: 1.1 to 1.6 on SmolLM2, 2 to 128 tokens."""

_PASSES = 1.8
"""Passes over columns / width: blocks narrow when triplets are found, and tokens that are slow go on alone. Measured on
SmolLM2, as `_JOINT`: 15 to 22 passes where this gives 19."""

_QUICKEST, _SLOWEST = 3, 6
"""Blocks on each side by which the quickest of many searches undercuts the expected one, and the slowest outlasts it.
Measured on SmolLM2 and Gemma 3 270m, 16 and 48 tokens, k from 4 to 16: up to 3 and 6."""


_STILL_OPEN = 1 / 2
"""Share of the rows that may be left in a sweep when the slowest searches outgrow their room: a third was measured."""

_COUNTS = 128
"""Numbers of columns, up to those of a sweep, that are looked at."""

_TURNS = 16
"""Turns of the dense method's check that are looked at, one in so many where there are more: neighbours are alike."""

_NARROWEST = 2
"""Width that is advised at least: at 1 a search misses values."""

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


class Asked(NamedTuple):
    """What some tokens take: by which method, rows of a sweep, sweeps, row-sweeps in all, bytes besides the network.

    ``otherwise``: bytes of the other method where `auto` may choose it, else 0.
    """

    method: str
    rows: int
    passes: int
    row_sweeps: float
    bytes: int
    otherwise: int = 0


class Otherwise(NamedTuple):
    """Another way to hold the weights: what to change, the bytes that must be there then, and what is demanded."""

    change: str
    weights: int
    demand: Demand


@dataclass(frozen=True)
class Demand:
    """What searches on a network hold: of all tokens side by side, or of each in lockstep."""

    shape: NetworkShape
    k: int
    tol: float
    rates: Rates

    def columns(self, tokens: int, width: int) -> float:
        """Return the columns both ways that a search is expected to need, of ``tokens`` side by side."""
        return (_JOINT if tokens > 1 else 1.0) * self._alone(tokens, width)

    def passes(self, tokens: int, width: int) -> int:
        """Return the sweeps one after another that it is expected to take."""
        return round(_PASSES * self._alone(tokens, width) / width) + 2

    def together(self, tokens: int, width: int, rebuilt: tuple[bool, bool]) -> Asked:
        """Return what all tokens side by side take, searched by Lanczos."""
        row_sweeps = self.columns(tokens, width) * self.cost(tokens)
        return Asked(
            "lanczos", tokens * width, self.passes(tokens, width), row_sweeps, self.joint(tokens, width, rebuilt)
        )

    def joint(self, tokens: int, width: int, rebuilt: tuple[bool, bool]) -> int:
        """Bytes of the rows and the search of all tokens side by side."""
        return self._most([tokens], tokens, width, rebuilt, lockstep=False)

    def alone(self, lengths: list[int], width: int, rebuilt: tuple[bool, bool]) -> Asked:
        """Return what tokens take that are asked for one by one, so far from the output: as `auto` counts, if it may.

        Where both methods take much the same rows, `auto` times them and may choose the other.
        """
        shape, costs = self._operator(1), [self.cost(length) for length in lengths]
        chunk = chunk_width(max(costs), shape[0])
        passes = ceil(shape[0] / chunk)
        shapes = [shape] * len(lengths)
        expected = forecast(shapes, costs, max(costs), k=self.k, tol=self.tol, width=width, dense_passes=passes)
        lanczos = self._most(lengths, 1, width, rebuilt, lockstep=True) if expected.may_be_lanczos else 0
        dense = self._matrices(lengths, chunk, rebuilt) if expected.may_be_dense else 0
        if expected.ratio < 1:
            rows, lanczos_passes = sum(lengths) * width, self.passes(1, width)
            return Asked("lanczos", rows, lanczos_passes, expected.lanczos_rows, lanczos, otherwise=dense)
        return Asked("dense", max(lengths) * chunk, passes, expected.dense_rows, dense, otherwise=lanczos)

    def cost(self, length: int) -> float:
        """Row-sweeps of one column of a token so far from the output: the last block is met at the output alone."""
        blocks = len(self.shape.blocks)
        return (length * (blocks - 1) + 1) / blocks

    def at_once(self, lengths: list[int], width: int, rebuilt: tuple[bool, bool], room: int) -> int:
        """Return how many tokens, the first ones, fit into ``room`` bytes if they are asked for together; 0 if none."""

        def asked(count: int) -> Asked:
            return self.alone(lengths[:count], width, rebuilt)

        def fits(count: int) -> bool:
            found = asked(count)
            return max(found.bytes, found.otherwise) <= room

        def by_lanczos(count: int) -> bool:
            found = asked(count)
            return found.method == "lanczos" or found.otherwise > 0

        # bytes grow with the tokens, but fall where there are too many for Lanczos
        few = _last(len(lengths), by_lanczos)
        many = _last(len(lengths), lambda count: count <= few or fits(count))
        return many if many > few else _last(few, fits)

    def smallest(self, tokens: int) -> Plan:
        """Return the schedule that keeps nothing that can lie elsewhere."""
        kept = make_plan(self.shape, [tokens], None, self.rates)

        def elsewhere(kind: Kind) -> tuple[Way, ...]:
            return tuple("offload" if kept.has(kind, block) else "keep" for block in range(len(self.shape.blocks)))

        return replace(kept, mixing=elsewhere("mixing"), gates=elsewhere("gates"))

    def total(self, schedule: Plan, width: int) -> int:
        """Bytes that the joint job holds with a schedule, weights apart."""
        joint = self.joint(sum(schedule.lengths), width, schedule.rebuilt)
        return max(schedule.peak(width), schedule.resident + schedule.staged + joint)

    def least(self, tokens: int, width: int) -> int:
        """Bytes that it holds at least."""
        return self.total(self.smallest(tokens), width)

    def fitting_tokens(self, width: int, room: int, most: int) -> int:
        """Return how many tokens fit into ``room`` bytes, at most ``most``; 0 if not even one does."""
        return _last(most, lambda tokens: self.least(tokens, width) <= room)

    def _matrices(self, lengths: list[int], chunk: int, rebuilt: tuple[bool, bool]) -> int:
        """Bytes of dense matrices, and of a sweep of so many shared cotangents, their products, an SVD, or a check."""
        shape, count, n = self._operator(1), len(lengths), max(lengths)
        working = working_dtype(_DTYPES[self.shape.itemsize]).itemsize
        # the last one may have fewer columns, whose rows go in taller parts
        sweep = max(
            sweep_bytes(self.shape, [n], columns, rebuilt=rebuilt, lockstep=True)
            for columns in {chunk, shape[0] % chunk or chunk}
        )
        products = chunk * shape[1] * (n * self.shape.itemsize + count * working)
        decomposing = (2 * shape[0] * shape[1] + min(shape) * sum(shape)) * working
        triplets = count * result_bytes(shape, _DTYPES[self.shape.itemsize], self.k)
        together = turns([self.cost(length) for length in lengths])
        checking = max(
            sweep_bytes(self.shape, [lengths[i] for i in turn], 1, rebuilt=rebuilt, lockstep=True)
            + len(turn) * shape[1] * (working + 2 * self.shape.itemsize)  # its vectors, as they are sent
            for turn in together[:: -(-len(together) // _TURNS)]
        )
        after = max(checking, decomposing) + triplets  # a mixture of the triplets is sent last
        return count * shape[0] * shape[1] * working + max(sweep, products, after)

    def _most(self, lengths: list[int], span: int, width: int, rebuilt: tuple[bool, bool], *, lockstep: bool) -> int:
        """Return the most of four moments: the first sweeps, those before blocks narrow, the last ones, the results."""
        shape, count = self._operator(span), len(lengths)
        dtype = _DTYPES[self.shape.itemsize]
        side, triplets = self.columns(span, width) / 2, self.k + width // 2
        most = side + _SLOWEST * width if lockstep else side
        first = expected_room(self.k, self.tol, width, shape)
        last = room_for(most, first)
        # those that outgrow the first room, if all numbers between the extremes are as likely
        grown = ceil(count * min(1.0, max(0.0, (most - first) / ((_QUICKEST + _SLOWEST) * width)))) if lockstep else 1

        @cache
        def sweep(columns: int, met: bool) -> int:
            """Bytes of a sweep of so many columns; later on also of fewer, whose rows may go in taller parts."""
            looked_at = (*(range(1, columns, -(-columns // _COUNTS)) if met else ()), columns)
            return max(
                sweep_bytes(self.shape, lengths, some, rebuilt=rebuilt, lockstep=lockstep, met=met)
                for some in looked_at
            )

        def searches(room: int, many: int, triplets: int = triplets) -> int:
            return many * searching_bytes(shape, dtype, width=width, room=room, triplets=triplets)

        def fewer(share: float, met: bool) -> int:
            """Bytes of a sweep of a share of the rows: what it takes in any case is not less."""
            whole = sweep(width, met)
            return whole - int((1 - share) * (sweep(2 * width, met) - whole))

        # the first sweep with fewer rows than the next power of two below meets its products anew
        rows = sum(lengths) * width
        narrower = fewer((1 << (rows - 1).bit_length() >> 1) / rows, met=False)
        judging = judging_bytes(shape, dtype, width=width, triplets=triplets)
        rooms = searches(last, grown) + searches(first, count - grown)
        growing = first * max(shape) * working_dtype(dtype).itemsize if last > first else 0
        return max(
            searches(first, count, triplets=width if self.k <= width else 0) + sweep(width, met=False),
            searches(first, count) + max(sweep(width, met=True), narrower, judging),
            rooms + max(fewer(_STILL_OPEN, met=True), growing, judging),
            rooms - searches(last, 1) + finishing_bytes(shape, dtype, self.k, triplets),
        )

    def _alone(self, tokens: int, width: int) -> float:
        return expected_columns(self.k, self.tol, width, self._operator(tokens))

    def _operator(self, tokens: int) -> tuple[int, int]:
        return self.shape.output_size, tokens * self.shape.embedding_size


def advice(
    demand: Demand, limit: int, tokens: int, width: int, weights: int, otherwise: Sequence[Otherwise]
) -> tuple[str, ...]:
    """Return changes of which each is enough, for a job that does not fit however it is scheduled.

    Parameters
    ----------
    demand : Demand
    limit : int
        Bytes for everything.
    tokens, width : int
    weights : int
        Bytes of weights that must be there.
    otherwise : sequence of Otherwise
        Other ways to hold the weights.
    """
    enough = [other for other in otherwise if other.weights + other.demand.least(tokens, width) <= limit]
    others = [other for other in otherwise if other not in enough]
    changes = [other.change for other in enough]
    if width > _NARROWEST and weights + demand.least(tokens, _NARROWEST) <= limit:
        changes.append(f"take a narrower block (width {_NARROWEST})")
    for how, held, wanted in [("", weights, demand), *((f" and {o.change}", o.weights, o.demand) for o in others)]:
        fewer = wanted.fitting_tokens(width, limit - held, tokens - 1)
        if fewer:
            changes.append(f"give {fewer} tokens or fewer{how}")
            break
    changes.append(f"give {format_bytes(weights + demand.least(tokens, width), up=True)} of memory")
    return tuple(changes)


def _last(most: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number up to ``most`` for which something holds that does for all smaller ones; else 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low

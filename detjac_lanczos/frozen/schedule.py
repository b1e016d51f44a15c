"""The memory schedule: which frozen factors of which block are kept, offloaded, or made again in every sweep.

One plan is made before the forward pass, from a budget, from sizes and from rates. Blocks are alike, so for each kind
of coefficient a plan is a few numbers of blocks; the cheapest that fits is found exactly. Blocks in the middle leave
first: those at either end are the last of one sweep and the first of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from detjac_lanczos.budget import format_bytes
from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.sizes import BlockShape, NetworkShape
from detjac_lanczos.frozen.ways import KINDS, WAYS, Kind, Rates, Way, bytes_of, part_of, seconds_of


def make_plan(shape: NetworkShape, lengths: Sequence[int], memory: int | None, rates: Rates | None = None) -> Plan:
    """Return the cheapest plan whose coefficients and streams fit into a budget.

    Parameters
    ----------
    shape : NetworkShape
    lengths : sequence of int
        Positions of each prompt.
    memory : int or None
        Bytes for frozen factors and streams that stay in memory; without a budget everything is kept.
    rates : Rates, optional
        Those of a CPU by default.

    Raises
    ------
    InputError
        If even the smallest plan does not fit; it says what would.
    """
    lengths = tuple(lengths)
    keep: tuple[Way, ...] = tuple("keep" for _ in shape.blocks)
    rates = rates or Rates.of(torch.device("cpu"))
    if memory is None:
        return Plan(keep, keep, shape, lengths, ahead=rates.overlaps)
    fixed = shape.streams(lengths) + shape.rest(lengths)
    groups = list(_groups(shape, lengths))
    frontier: list[_Choice] = [_Choice(fixed, 0.0, ())]
    for kind, block, members in groups:
        costs = {way: seconds_of(shape, block, kind, way, lengths, rates) for way in WAYS}
        sizes = {way: 0 if way == "offload" else bytes_of(shape, block, kind, way, lengths) for way in WAYS}
        choices = [
            _Choice(
                sum(sizes[way] * count for way, count in zip(WAYS, counts, strict=True)),
                sum(costs[way] * count for way, count in zip(WAYS, counts, strict=True)),
                (counts,),
            )
            for counts in _splits(len(members))
        ]
        frontier = _cheapest([a + b for a in frontier for b in _cheapest(choices)])
    fitting = [choice for choice in frontier if choice.bytes <= memory]
    if not fitting:
        raise InputError(
            f"memory={format_bytes(memory)} is too little for {sum(lengths)} tokens: the smallest plan takes "
            f"{format_bytes(fixed, up=True)}; give that much, or fewer tokens"
        )
    best = min(fitting, key=lambda choice: (choice.seconds, choice.bytes))
    ways: dict[Kind, list[Way]] = {kind: list(keep) for kind in KINDS}
    for (kind, _, members), counts in zip(groups, best.counts, strict=True):
        for index, way in zip(_from_the_middle(members, len(shape.blocks)), _in_order(counts), strict=True):
            ways[kind][index] = way
    return Plan(tuple(ways["mixing"]), tuple(ways["gates"]), shape, lengths, memory, best.seconds, rates.overlaps)


@dataclass(frozen=True)
class _Choice:
    """Some numbers of blocks for each way, and what they take."""

    bytes: int
    seconds: float
    counts: tuple[tuple[int, ...], ...]

    def __add__(self, other: _Choice) -> _Choice:
        return _Choice(self.bytes + other.bytes, self.seconds + other.seconds, self.counts + other.counts)


def _cheapest(choices: Sequence[_Choice]) -> list[_Choice]:
    """Return the choices that no other undercuts in both bytes and seconds, fewest bytes first."""
    left: list[_Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.bytes, choice.seconds)):
        if not left or choice.seconds < left[-1].seconds:
            left.append(choice)
    return left


def _groups(shape: NetworkShape, lengths: Sequence[int]) -> Iterator[tuple[Kind, BlockShape, list[int]]]:
    """Yield, for each kind, the blocks that are alike in it; those without any of it are left out."""
    for kind in KINDS:
        alike: dict[Any, list[int]] = {}
        for index, block in enumerate(shape.blocks):
            if bytes_of(shape, block, kind, "keep", lengths):
                alike.setdefault(part_of(block, kind), []).append(index)
        for members in alike.values():
            yield kind, shape.blocks[members[0]], members


def _splits(count: int) -> Iterator[tuple[int, int, int]]:
    for keep in range(count + 1):
        for offload in range(count - keep + 1):
            yield keep, offload, count - keep - offload


def _from_the_middle(members: Sequence[int], blocks: int) -> list[int]:
    return sorted(members, key=lambda index: (abs(index - (blocks - 1) / 2), index))


def _in_order(counts: tuple[int, ...]) -> Iterator[Way]:
    """Yield ways from the middle block outwards: what is read from elsewhere, what is made again, what is kept."""
    for way in ("offload", "rebuild", "keep"):
        for _ in range(counts[WAYS.index(way)]):
            yield way

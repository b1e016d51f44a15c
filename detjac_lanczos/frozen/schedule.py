"""The memory schedule: which frozen factors of which block are kept, offloaded, or made again in every sweep.

One plan is made before the forward pass, from a budget, from sizes and from rates. Blocks are alike, so for each kind
of coefficient a plan is a few numbers of blocks; the cheapest that fits is found exactly. Blocks in the middle leave
first: those at either end are the last of one sweep and the first of the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.peak import capture_bytes, check_bytes, sweep_bytes
from detjac_lanczos.frozen.sizes import BlockShape, NetworkShape
from detjac_lanczos.frozen.words.word import Kind, Way

KINDS: tuple[Kind, ...] = ("mixing", "gates")
WAYS: tuple[Way, ...] = ("keep", "offload", "rebuild")
WIDTH = 4
"""Columns of the sweep that a plan is made for."""


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    ``flops`` of a GEMM, ``weights`` of a softmax made again, ``bytes`` read from where offloaded coefficients lie, and
    whether those are read while it computes.
    """

    flops: float
    weights: float
    bytes: float
    overlaps: bool

    @classmethod
    def of(cls, device: torch.device) -> Rates:
        """Return cautious rates of a kind of device: they choose between ways, and need only be right to a factor."""
        if device.type == "cuda":
            return cls(flops=1e14, weights=5e10, bytes=2e10, overlaps=False)
        return cls(flops=1e11, weights=5e8, bytes=1e9, overlaps=False)


@dataclass(frozen=True)
class Plan:
    """What becomes of the frozen factors of every block.

    Attributes
    ----------
    mixing, gates : tuple of {"keep", "offload", "rebuild"}
        One for each block.
    shape : NetworkShape
    lengths : tuple of int
        Positions of each prompt.
    memory : int or None
        The budget in bytes; None for none, and then everything is kept.
    seconds : float
        What offloading and making again add to a sweep of four columns over all positions, as predicted.
    """

    mixing: tuple[Way, ...]
    gates: tuple[Way, ...]
    shape: NetworkShape
    lengths: tuple[int, ...]
    memory: int | None = None
    seconds: float = 0.0

    def way(self, kind: Kind, block: int) -> Way:
        """Return what becomes of a kind of coefficient in a block."""
        return (self.mixing if kind == "mixing" else self.gates)[block]

    def bytes_of(self, kind: Kind, way: Way) -> int:
        """Return the bytes of all coefficients of a kind that go one way, wherever they lie."""
        blocks = zip(self.shape.blocks, self.mixing if kind == "mixing" else self.gates, strict=True)
        return sum(_bytes(self.shape, block, kind, way, self.lengths) for block, chosen in blocks if chosen == way)

    @property
    def streams(self) -> int:
        """Bytes of the streams of the forward pass."""
        return self.shape.streams(self.lengths)

    @property
    def coefficients(self) -> int:
        """Bytes of frozen factors that stay in memory."""
        kept = sum(self.bytes_of(kind, way) for kind in KINDS for way in WAYS if way != "offload")
        return kept + self.shape.rest(self.lengths)

    @property
    def resident(self) -> int:
        """Bytes that stay in memory: what the budget is held against."""
        return self.coefficients + self.streams

    @property
    def rebuilt(self) -> tuple[bool, bool]:
        """Whether attention weights, and gates, of some block are made again in every sweep."""
        return "rebuild" in self.mixing, "rebuild" in self.gates

    @property
    def offloaded(self) -> int:
        """Bytes of frozen factors that lie elsewhere."""
        return sum(self.bytes_of(kind, "offload") for kind in KINDS)

    def peak(self, width: int = WIDTH) -> int:
        """Return the most bytes held at once, predicted: by the capture, its self-check, or sweeps of all positions.

        The weights of the model are not among them, nor what lies in files.

        Parameters
        ----------
        width : int
            Columns of the sweeps.
        """
        return self.resident + max(
            capture_bytes(self.shape, self.lengths),
            check_bytes(self.shape, self.lengths, rebuilt=self.rebuilt),
            sweep_bytes(self.shape, self.lengths, width, rebuilt=self.rebuilt),
        )

    def seconds_with(self, rates: Rates) -> float:
        """Return what offloading and making again add to a sweep, as `seconds` does, at other rates."""
        return sum(
            _seconds(self.shape, block, kind, self.way(kind, index), self.lengths, rates)
            for kind in KINDS
            for index, block in enumerate(self.shape.blocks)
        )

    @property
    def record(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "memory": self.memory,
            "mixing": _runs(self.mixing),
            "gates": _runs(self.gates),
            "bytes": {"coefficients": self.coefficients, "streams": self.streams, "offloaded": self.offloaded},
            "peak": {"width": WIDTH, "bytes": self.peak()},
            "seconds_per_sweep": self.seconds,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any], shape: NetworkShape, lengths: Sequence[int]) -> Plan:
        """Return the plan that `record` describes."""
        mixing, gates = (_read_runs(record[kind], len(shape.blocks)) for kind in KINDS)
        return cls(mixing, gates, shape, tuple(lengths), record["memory"], record["seconds_per_sweep"])

    def __str__(self) -> str:
        """Return the plan as a table."""
        budget = "no budget" if self.memory is None else f"a budget of {format_bytes(self.memory)}"
        lines = [f"{format_bytes(self.resident)} in memory, under {budget}"]
        for kind, ways in (("attention weights", self.mixing), ("gates", self.gates)):
            name: Kind = "gates" if kind == "gates" else "mixing"
            parts = [f"{way} {spans} ({format_bytes(self.bytes_of(name, way))})" for way, spans in _runs(ways).items()]
            lines.append(f"  {kind:18} {'; '.join(parts)}")
        lines.append(f"  {'streams':18} {format_bytes(self.streams)}")
        lines.append(f"  {'the rest':18} {format_bytes(self.shape.rest(self.lengths))}")
        lines.append(f"  {'predicted peak':18} {format_bytes(self.peak())}, in sweeps of {WIDTH} columns")
        return "\n".join(lines)


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
    if memory is None:
        return Plan(keep, keep, shape, lengths)
    rates = rates or Rates.of(torch.device("cpu"))
    fixed = shape.streams(lengths) + shape.rest(lengths)
    groups = list(_groups(shape))
    frontier: list[_Choice] = [_Choice(fixed, 0.0, ())]
    for kind, block, members in groups:
        costs = {way: _seconds(shape, block, kind, way, lengths, rates) for way in WAYS}
        sizes = {way: 0 if way == "offload" else _bytes(shape, block, kind, way, lengths) for way in WAYS}
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
    return Plan(tuple(ways["mixing"]), tuple(ways["gates"]), shape, lengths, memory, best.seconds)


def read_memory(memory: str | int | None) -> int | None:
    """Return a budget in bytes from a number, or a text such as "2GiB", "500 MB" or "1e9".

    Raises
    ------
    InputError
        If it is none of these, or not positive.
    """
    if memory is None:
        return None
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*(?:([kmgt])(i?))?b?\s*", memory.lower())
        if found:
            power = "kmgt".index(found[2]) + 1 if found[2] else 0
            memory = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0:
        raise InputError(f"memory must be a number of bytes or a text such as '2GiB', not {memory!r}")
    return memory


def format_bytes(count: int, *, up: bool = False) -> str:
    """Return bytes as a text that `read_memory` reads; ``up`` rounds so that it is no less."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            value = count / 1024**power
            return f"{int(value * 100 + 1) / 100 if up else round(value, 2):g}{unit}"
    return f"{count}B"


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


def _groups(shape: NetworkShape) -> Iterator[tuple[Kind, BlockShape, list[int]]]:
    """Yield, for each kind, the blocks that are alike in it."""
    for kind in KINDS:
        alike: dict[Any, list[int]] = {}
        for index, block in enumerate(shape.blocks):
            alike.setdefault(_part(block, kind), []).append(index)
        for members in alike.values():
            yield kind, shape.blocks[members[0]], members


def _part(block: BlockShape, kind: Kind) -> Any:
    return (block.heads, block.kv_heads, block.head_dim) if kind == "mixing" else block.gates


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


def _bytes(shape: NetworkShape, block: BlockShape, kind: Kind, way: Way, lengths: Sequence[int]) -> int:
    size = shape.mixing if kind == "mixing" else shape.gates
    return size(block, lengths, rebuilt=way == "rebuild")


def _seconds(
    shape: NetworkShape, block: BlockShape, kind: Kind, way: Way, lengths: Sequence[int], rates: Rates
) -> float:
    """Seconds that a way adds, in one block, to a sweep of `WIDTH` columns over all positions."""
    if way == "keep" or not _part(block, kind):
        return 0.0
    if way == "offload":
        seconds = _bytes(shape, block, kind, way, lengths) / rates.bytes
        return max(0.0, seconds - _compute(shape, block, lengths, rates)) if rates.overlaps else seconds
    if kind == "gates":
        return sum(2 * sum(lengths) * g.inputs * g.width * g.projections for g in block.gates) / rates.flops
    weights = block.heads * sum(n * (n + 1) // 2 for n in lengths)
    return weights / rates.weights + 2 * weights * block.head_dim / rates.flops


def _compute(shape: NetworkShape, block: BlockShape, lengths: Sequence[int], rates: Rates) -> float:
    """Seconds of one block's own products, in the shadow of which offloaded coefficients come."""
    d, rows = shape.hidden_size, WIDTH * sum(lengths)
    values = block.head_dim * (block.heads + block.kv_heads)
    return 2 * rows * d * (values + 2 * sum(g.width for g in block.gates)) / rates.flops


def _runs(ways: Sequence[Way]) -> dict[Way, str]:
    """Return the blocks of each way as text: {"keep": "0-5, 24-29", "rebuild": "6-23"}."""
    spans: dict[Way, list[str]] = {}
    for way, group in groupby(enumerate(ways), key=lambda item: item[1]):
        indices = [index for index, _ in group]
        spans.setdefault(way, []).append(f"{indices[0]}-{indices[-1]}" if len(indices) > 1 else f"{indices[0]}")
    return {way: ", ".join(parts) for way, parts in spans.items()}


def _read_runs(spans: Mapping[str, str], blocks: int) -> tuple[Way, ...]:
    """Read back what `_runs` wrote."""
    ways: list[Way] = ["keep"] * blocks
    for way in WAYS:
        for span in re.findall(r"\d+(?:-\d+)?", spans.get(way, "")):
            first, _, last = span.partition("-")
            for index in range(int(first), int(last or first) + 1):
                ways[index] = way
    return tuple(ways)

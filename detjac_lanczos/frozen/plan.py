"""What becomes of the frozen factors of every block, as data: what it takes, and its record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from detjac_lanczos.budget import format_bytes
from detjac_lanczos.frozen.peak import capture_bytes, check_bytes, own_pass_bytes, sweep_bytes
from detjac_lanczos.frozen.sizes import NetworkShape
from detjac_lanczos.frozen.ways import KINDS, WAYS, WIDTH, Kind, Rates, Way, bytes_of, seconds_of


@dataclass(frozen=True, repr=False)
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
    ahead : bool
        Whether sweeps have offloaded factors copied to their device, a block ahead.
    """

    mixing: tuple[Way, ...]
    gates: tuple[Way, ...]
    shape: NetworkShape
    lengths: tuple[int, ...]
    memory: int | None = None
    seconds: float = 0.0
    ahead: bool = False

    def way(self, kind: Kind, block: int) -> Way:
        """Return what becomes of a kind of coefficient in a block."""
        return (self.mixing if kind == "mixing" else self.gates)[block]

    def has(self, kind: Kind, block: int) -> bool:
        """Tell whether a block has coefficients of a kind."""
        return bytes_of(self.shape, self.shape.blocks[block], kind, "keep", self.lengths) > 0

    def runs(self, kind: Kind) -> dict[Way, str]:
        """Return the blocks of each way as text, those that have none of a kind left out."""
        return _runs({i: self.way(kind, i) for i in range(len(self.shape.blocks)) if self.has(kind, i)})

    def bytes_of(self, kind: Kind, way: Way) -> int:
        """Return the bytes of all coefficients of a kind that go one way, wherever they lie."""
        blocks = zip(self.shape.blocks, self.mixing if kind == "mixing" else self.gates, strict=True)
        return sum(bytes_of(self.shape, block, kind, way, self.lengths) for block, chosen in blocks if chosen == way)

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

    @property
    def staged(self) -> int:
        """Bytes of offloaded factors that are on the device at once: those of two neighbouring blocks."""
        if not self.ahead:
            return 0
        offloaded = [
            sum(
                bytes_of(self.shape, block, kind, "offload", self.lengths)
                for kind in KINDS
                if self.way(kind, index) == "offload"
            )
            for index, block in enumerate(self.shape.blocks)
        ]
        return max((one + next_one for one, next_one in pairwise([0, *offloaded])), default=0)

    def peak(self, width: int = WIDTH) -> int:
        """Return the most bytes held at once, predicted: by the capture, its self-check, or sweeps of all positions.

        The weights of the model are not among them, nor what lies in files, nor rows as wide as the vocabulary: a
        product with Jacobians of the logits holds its own, twice where it is the first.

        Parameters
        ----------
        width : int
            Columns of the sweeps.

        Returns
        -------
        int
        """
        working = max(
            capture_bytes(self.shape, self.lengths),
            self.staged + check_bytes(self.shape, self.lengths, rebuilt=self.rebuilt),
            self.staged + sweep_bytes(self.shape, self.lengths, width, rebuilt=self.rebuilt),
        )
        return max(own_pass_bytes(self.shape, self.lengths), self.resident + working)

    def seconds_with(self, rates: Rates) -> float:
        """Return what offloading and making again add to a sweep, as `seconds` does, at other rates."""
        return sum(
            seconds_of(self.shape, block, kind, self.way(kind, index), self.lengths, rates)
            for kind in KINDS
            for index, block in enumerate(self.shape.blocks)
        )

    @property
    def record(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "memory": self.memory,
            "mixing": self.runs("mixing"),
            "gates": self.runs("gates"),
            "bytes": {"coefficients": self.coefficients, "streams": self.streams, "offloaded": self.offloaded},
            "peak": {"width": WIDTH, "bytes": self.peak()},
            "seconds_per_sweep": self.seconds,
            "ahead": self.ahead,
        }

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], shape: NetworkShape, lengths: Sequence[int], *, ahead: bool
    ) -> Plan:
        """Return the plan that `record` describes, on a device that copies a block ahead, or on one that does not."""
        mixing, gates = (_read_runs(record[kind], len(shape.blocks)) for kind in KINDS)
        memory, seconds = record["memory"], float(record["seconds_per_sweep"])
        return cls(mixing, gates, shape, tuple(lengths), None if memory is None else int(memory), seconds, ahead)

    @property
    def _total(self) -> str:
        budget = "no budget" if self.memory is None else f"a budget of {format_bytes(self.memory)}"
        return f"{format_bytes(self.resident)} in memory, under {budget}"

    def __repr__(self) -> str:
        """One line: what stays in memory, and what becomes of the blocks."""
        return f"Plan({self._total}, mixing={self.runs('mixing')}, gates={self.runs('gates')})"

    def __str__(self) -> str:
        """Return the plan as a table."""
        lines = [self._total]
        for kind in KINDS:
            parts = [
                f"{way} {spans} ({format_bytes(self.bytes_of(kind, way))})" for way, spans in self.runs(kind).items()
            ]
            if parts:
                lines.append(f"  {'attention weights' if kind == 'mixing' else kind:18} {'; '.join(parts)}")
        if self.staged:
            lines.append(f"  {'on the way':18} {format_bytes(self.staged)}: two blocks of what is offloaded")
        lines.append(f"  {'streams':18} {format_bytes(self.streams)}")
        lines.append(f"  {'the rest':18} {format_bytes(self.shape.rest(self.lengths))}")
        lines.append(f"  {'predicted peak':18} {format_bytes(self.peak())}, in sweeps of {WIDTH} columns")
        return "\n".join(lines)


def _runs(ways: Mapping[int, Way]) -> dict[Way, str]:
    """Return the blocks of each way as text: {"keep": "0-5, 24-29", "rebuild": "6-23"}."""
    spans: dict[Way, list[str]] = {}
    for (way, _), group in groupby(enumerate(ways.items()), key=lambda item: (item[1][1], item[1][0] - item[0])):
        indices = [index for _, (index, _) in group]
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

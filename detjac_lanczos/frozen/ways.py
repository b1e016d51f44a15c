"""What may become of the frozen factors of a block, and what each way takes: bytes and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from detjac_lanczos.frozen.sizes import BlockShape, NetworkShape

Kind = Literal["mixing", "gates"]
Way = Literal["keep", "offload", "rebuild"]
KINDS: tuple[Kind, ...] = ("mixing", "gates")
WAYS: tuple[Way, ...] = ("keep", "offload", "rebuild")
WIDTH = 4
"""Columns of the sweep that a plan is made for."""


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    ``flops`` of a GEMM, ``weights`` of a softmax made again, ``bytes`` read from where offloaded coefficients lie, and
    whether those come while it computes, a block ahead.
    """

    flops: float
    weights: float
    bytes: float
    overlaps: bool

    @classmethod
    def of(cls, device: torch.device) -> Rates:
        """Return cautious rates of a kind of device: they choose between ways, and need only be right to a factor."""
        if device.type == "cuda":
            return cls(flops=1e14, weights=5e10, bytes=2e10, overlaps=True)
        return cls(flops=1e11, weights=5e8, bytes=1e9, overlaps=False)


def part_of(block: BlockShape, kind: Kind) -> Any:
    """Return what makes blocks alike in a kind; empty or zero where they have none of it."""
    return (block.heads, block.kv_heads, block.head_dim) if kind == "mixing" else block.gates


def bytes_of(shape: NetworkShape, block: BlockShape, kind: Kind, way: Way, lengths: Sequence[int]) -> int:
    """Return the bytes of a block's coefficients of a kind that go one way, wherever they lie."""
    size = shape.mixing if kind == "mixing" else shape.gates
    return size(block, lengths, rebuilt=way == "rebuild")


def seconds_of(
    shape: NetworkShape, block: BlockShape, kind: Kind, way: Way, lengths: Sequence[int], rates: Rates
) -> float:
    """Seconds that a way adds, in one block, to a sweep of `WIDTH` columns over all positions."""
    if way == "keep" or not part_of(block, kind):
        return 0.0
    if way == "offload":
        seconds = bytes_of(shape, block, kind, way, lengths) / rates.bytes
        return max(0.0, seconds - _shadow(shape, block, kind, lengths, rates)) if rates.overlaps else seconds
    if kind == "gates":
        return sum(2 * sum(lengths) * g.inputs * g.width * g.projections for g in block.gates) / rates.flops
    weights = block.heads * sum(n * (n + 1) // 2 for n in lengths)
    return weights / rates.weights + 2 * weights * block.head_dim / rates.flops


def _shadow(shape: NetworkShape, block: BlockShape, kind: Kind, lengths: Sequence[int], rates: Rates) -> float:
    """Seconds of a block's products around the coefficients of a kind, while which the next block's come."""
    if kind == "mixing":
        width = block.head_dim * (block.heads + block.kv_heads)
    else:
        width = 2 * sum(gate.width for gate in block.gates)
    return 2 * WIDTH * sum(lengths) * shape.hidden_size * width / rates.flops

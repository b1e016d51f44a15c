"""How long a job takes: what a sweep reads, multiplies and decodes, at a device's rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.sizes import NetworkShape
from detjac_lanczos.runs.machines import Machine


@dataclass(frozen=True)
class Pace:
    """What one sweep does.

    ``weights`` that a row meets, and their ``bytes``; ``streamed`` bytes of weights that are not on the device;
    ``packed`` weights that are decoded; ``mixing`` multiplications of a row for every position that it attends to.
    """

    weights: float
    bytes: float
    streamed: int
    packed: float
    mixing: int

    @classmethod
    def of(
        cls, model: nn.Module, family: Family, shape: NetworkShape, bytes_inside: int, streamed: int, *, packed: bool
    ) -> Pace:
        """Return the pace of a model whose blocks take ``bytes_inside``."""
        blocks = family.blocks_of(model)
        used = _weights_of_a_sweep(blocks, shape)
        count = sum(parameter.numel() for block in blocks for parameter in block.parameters())
        mixing = sum(2 * block.heads * block.head_dim for block in shape.blocks)
        return cls(used, used * bytes_inside / max(1, count), streamed, used if packed else 0.0, mixing)

    def seconds(self, machine: Machine, schedule: Plan, lengths: list[int], columns: float, passes: int) -> float:
        """Return the seconds of a search: of ``columns`` over each of the lengths, in so many passes.

        Weights are read and coefficients made once a pass; a pass that has many rows hides the reading.
        """
        read = max(self.bytes / machine.bandwidth, self.streamed / machine.link) + self.packed / machine.decode
        products = sum(n * columns * (self.weights + self.mixing * (n + 1) / 2) for n in lengths)
        return passes * schedule.seconds_with(machine.rates) + max(passes * read, 2 * products / machine.flops)


def capture_seconds(
    model: nn.Module, weights: Mapping[str, int], streamed: int, tokens: int, machine: Machine
) -> float:
    """Return the seconds of the two forward passes of a capture."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    once = max(sum(weights.values()) / machine.bandwidth, 2 * parameters * tokens / machine.flops)
    return 2 * (once + streamed / machine.link)


def _weights_of_a_sweep(blocks: Iterable[nn.Module], shape: NetworkShape) -> float:
    """Weights that a row meets: values, outputs, two matrices of each product; of experts two thirds of those used."""
    used = 0.0
    for module, block in zip(blocks, shape.blocks, strict=True):
        used += shape.hidden_size * block.head_dim * (block.heads + block.kv_heads)
        used += sum(2 * gate.inputs * gate.width for gate in block.gates)
        if not block.gates:
            for expert in block.experts:
                stacked = (p for p in module.parameters() if p.ndim == 3)
                used += sum(p.numel() * expert.chosen / p.shape[0] * 2 / 3 for p in stacked)
    return used

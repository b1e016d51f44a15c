"""What the machine does at best, measured on the spot, and the floors that follow from it."""

from dataclasses import dataclass

import torch

from bench.gpu.sizes import Sizes
from bench.gpu.timing import seconds

PACKED_BYTES = 0.5159
"""Bytes of one NF4 weight with double quantisation."""

INSTRUCTIONS = 9.6
"""Thread-instructions per decoded weight, about what docs/kernels.md counts at 64 rows and more on sm_90."""


@dataclass(frozen=True)
class Rates:
    """Bytes a second read and written, floating-point operations and thread-instructions a second."""

    bytes: float
    flops: float
    instructions: float | None


def measure(sizes: Sizes) -> Rates:
    """Measure a large copy and a large product; instructions come from the number of processors and their clock."""
    source = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    copied = seconds(sizes.device, lambda: target.copy_(source))
    n = sizes.product_size
    a = torch.randn(n, n, device=sizes.device, dtype=sizes.dtype)
    multiplied = seconds(sizes.device, lambda: a @ a)
    instructions = None
    if sizes.device.type == "cuda":
        properties = torch.cuda.get_device_properties(sizes.device)
        clock = getattr(properties, "clock_rate", 1_600_000) * 1e3
        instructions = properties.multi_processor_count * 128 * clock
    return Rates(2 * sizes.copied_bytes / copied, 2 * n**3 / multiplied, instructions)


def floor(rates: Rates, moved: int, operations: int) -> float:
    """Return the least seconds in which some bytes are moved while some operations are done."""
    return max(moved / rates.bytes, operations / rates.flops)


def fused_floor(rates: Rates, weights: int, rows: int) -> float:
    """Return the least seconds of a fused pass: bytes, operations and decoding overlap, the slowest is left."""
    floors = [weights * PACKED_BYTES / rates.bytes, 2 * weights * rows / rates.flops]
    if rates.instructions is not None:
        floors.append(weights * INSTRUCTIONS * -(-rows // 128) / rates.instructions)
    return max(floors)


def dequantised_floor(rates: Rates, weights: int, rows: int, width: int) -> float:
    """Return the least seconds where the decoded matrix is written to memory and read again by the product."""
    decoded = weights * (PACKED_BYTES + width) / rates.bytes
    return decoded + max(weights * width / rates.bytes, 2 * weights * rows / rates.flops)

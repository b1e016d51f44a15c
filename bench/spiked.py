"""Large random matrices with a head of strong directions, packed in NF4 as they are drawn: never whole.

A trained matrix has a few directions far above the rest: SmolLM2's first singular values are 2 to 15 times the median
one. Random weights without such a head have Jacobians with a flat spectrum, whose leading singular vectors no method
finds in few sweeps. The head here falls geometrically, since heads of different blocks do not line up as trained ones
do.
"""

import torch
from bitsandbytes.functional import get_4bit_type, quantize_4bit, quantize_blockwise

from bench.gpu.packed import BLOCK, OUTER
from detjac_kernels.four_bit import Nested, Packed4

RANK, FIRST, RATIO = 24, 8.0, 0.8
"""Strong directions; the first, over the norm of the rest; and each over the one before."""

_ROWS = 1 << 22
"""Weights drawn at a time."""


def spiked_matrix(f: int, d: int, device: torch.device, std: float = 0.02) -> Packed4:
    """Return an NF4 matrix (f, d) with double quantisation: noise of a standard deviation, and the head on top."""
    left, right = (torch.linalg.qr(torch.randn(size, RANK, device=device)).Q for size in (f, d))
    strengths = FIRST * std * (f**0.5 + d**0.5) * RATIO ** torch.arange(RANK, device=device)
    codes, scales = [], []
    for part in (left * strengths).split(max(1, _ROWS // d)):
        rows = torch.randn(len(part), d, device=device).mul_(std).addmm_(part, right.T)
        packed, state = quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4")
        codes.append(packed.flatten())
        scales.append(state.absmax)
    absmax = torch.cat(scales)
    offset = absmax.mean()
    nested, outer = quantize_blockwise(absmax - offset, blocksize=OUTER)
    table = get_4bit_type("nf4", device=device)
    return Packed4(
        torch.cat(codes), nested, table, BLOCK, (f, d), Nested(outer.code, outer.absmax, OUTER, float(offset))
    )

"""Random 4-bit matrices, made without a quantiser (any codes, any scales), and how far two products lie apart."""

import torch
from torch import Tensor

from detjac_kernels.four_bit import Nested, Packed4


def random_packed(f: int, d: int, *, nested: bool, block: int = 64, seed: int = 0, inner: int = 256) -> Packed4:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (-(-f * d // 2),), dtype=torch.uint8, generator=generator)
    table = (2 * torch.rand(16, generator=generator) - 1).sort().values
    blocks = -(-f * d // block)
    if not nested:
        return Packed4(codes, torch.rand(blocks, generator=generator) + 0.1, table, block, (f, d))
    outer = Nested(
        torch.rand(256, generator=generator), torch.rand(-(-blocks // inner), generator=generator) + 0.5, inner, 0.03
    )
    absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8, generator=generator)
    return Packed4(codes, absmax, table, block, (f, d), outer)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())

"""MXFP4 weights used in place: any rows decoded from 4-bit codes that share a power of two in blocks of 32.

The layout is that of the Open Compute Project's microscaling formats (v1.0, 5.3), as gpt-oss stores it: a code is a
float of one sign, two exponent and one mantissa bit (E2M1), two a byte, value 2i in the **low** nibble; the scale byte
s of a block stands for 2^(s − 127). Decoded weights have two significant bits: they are exact in any floating dtype.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from detjac_kernels.scratch import converted, scratch

BLOCK = 32
"""Values that share a scale."""

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, eq=False)
class PackedMxfp4:
    """A matrix (f, d) of 4-bit floats. ``codes``: uint8 (f, d / 2); ``scales``: uint8 (f, d / 32).

    Raises
    ------
    ValueError
        If the tensors are not of these types and sizes.
    """

    codes: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        f, d = self.shape
        if self.codes.dtype is not torch.uint8 or self.scales.dtype is not torch.uint8:
            raise ValueError("codes and scales of an MXFP4 matrix must be uint8")
        if d % BLOCK or self.scales.shape != (f, d // BLOCK):
            raise ValueError(f"scales of shape {tuple(self.scales.shape)} are not those of an MXFP4 matrix {f, d}")

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, (f, d)."""
        return self.codes.shape[0], 2 * self.codes.shape[1]

    @property
    def device(self) -> torch.device:
        """Where its bytes lie."""
        return self.codes.device

    def decode(self, rows: range, dtype: torch.dtype) -> Tensor:
        """Return ascending rows, (len(rows), d), in scratch memory that the next call overwrites."""
        cut, (_, d), device = slice(rows.start, rows.stop, rows.step), self.shape, self.device
        pairs, powers = _tables(device)
        index = scratch("codes", len(rows) * d // 2, torch.int32, device)
        index.view(len(rows), -1).copy_(self.codes[cut])
        flat = scratch("decoded", len(rows) * d, torch.float32, device)
        torch.index_select(pairs, 0, index, out=flat.view(torch.int64))
        flat.view(-1, BLOCK).mul_(powers[self.scales[cut].int()].view(-1, 1))
        return converted(flat.view(len(rows), d), dtype)


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Both values of every byte, two float32 read as one integer: int64 (256,); and 2^(s − 127): float32 (256,)."""
    values = torch.tensor([*_MAGNITUDES, *(-m for m in _MAGNITUDES)])
    byte = torch.arange(256)
    pairs = torch.stack([values[byte & 15], values[byte >> 4]], dim=1).view(torch.int64).view(-1)
    powers = torch.ldexp(torch.ones(256, dtype=torch.float64), byte - 127).float()
    return pairs.to(device), powers.to(device)

"""4-bit weights used in place: any rows decoded, and GEMM in both directions from the same packed bytes.

The layout is that of bitsandbytes (NF4 and FP4, with and without double quantisation). Value i of the matrix, in flat
row-major order, is ``table[code_i] · absmax[i // block]``, one float32 product: that is the decoded weight, whichever
dtype computes with it. A block of scales may straddle rows.

Everything here is plain torch: the specification of the device kernels of the same names.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Unpack

import torch
from torch import Tensor

from detjac_kernels.decoded import product, product_transposed
from detjac_kernels.gemm import Around, surrounded
from detjac_kernels.scratch import converted, scratch

PAIRS_BYTES = 256 * 8
"""Bytes of the table of pairs that a matrix keeps once it was decoded."""


@dataclass(frozen=True, eq=False)
class Nested:
    """Scales that are quantised themselves: scale j is ``table[absmax_j] · absmax[j // block] + offset``.

    ``table``: float32 (256,); ``absmax``: float32 (ceil(blocks / block),).
    """

    table: Tensor
    absmax: Tensor
    block: int
    offset: float


@dataclass(frozen=True, eq=False)
class Packed4:
    """A matrix (f, d) of 4-bit codes with a scale for each block, in flat row-major order.

    ``codes``: uint8 (ceil(f·d / 2),), two codes a byte, value 2i in the high nibble; ``absmax``: float32 (blocks,), or
    uint8 with ``nested``; ``table``: float32 (16,).

    Raises
    ------
    ValueError
        If the tensors do not have the sizes that the shape asks for, or are not contiguous.
    """

    codes: Tensor
    absmax: Tensor
    table: Tensor
    block: int
    shape: tuple[int, int]
    nested: Nested | None = None

    def __post_init__(self) -> None:
        f, d = self.shape
        blocks = -(-f * d // self.block)
        sizes = [self.codes.shape == (-(-f * d // 2),), self.absmax.shape == (blocks,), self.table.shape == (16,)]
        types = [self.codes.dtype is torch.uint8, self.table.dtype is torch.float32]
        types.append(self.absmax.dtype is (torch.float32 if self.nested is None else torch.uint8))
        if self.nested is not None:
            sizes.append(self.nested.table.shape == (256,))
            sizes.append(self.nested.absmax.shape == (-(-blocks // self.nested.block),))
        if self.block % 2 or not all((*sizes, *types)):
            raise ValueError(f"codes, scales and tables are not those of a 4-bit matrix of shape {self.shape}")
        if not (self.codes.is_contiguous() and self.absmax.is_contiguous()):
            raise ValueError("codes and scales of a 4-bit matrix must be contiguous")

    @property
    def device(self) -> torch.device:
        """Where its bytes lie."""
        return self.codes.device

    def decode(self, rows: range, dtype: torch.dtype) -> Tensor:
        """Return ascending rows, (len(rows), d), in scratch memory that the next call overwrites.

        Each weight is computed in float32, then rounded to ``dtype``.
        """
        return converted(_decoded(self, rows[0], rows[-1] + 1), dtype)[:: rows.step]

    @cached_property
    def pairs(self) -> Tensor:
        """Both values of every byte, the 8 bytes of two float32 read as one integer: int64 (256,)."""
        byte = torch.arange(256, device=self.table.device)
        return torch.stack([self.table[byte >> 4], self.table[byte & 15]], dim=1).view(torch.int64).view(-1)

    def scales(self, start: int, stop: int) -> Tensor:
        """Return the scales of blocks ``start`` to ``stop``: float32 (stop − start,)."""
        kept = self.absmax[start:stop]
        if self.nested is None:
            return kept
        outer = torch.arange(start, stop, device=kept.device) // self.nested.block
        return self.nested.table[kept.int()] * self.nested.absmax[outer] + self.nested.offset


def packed_linear(x: Tensor, packed: Packed4, **around: Unpack[Around]) -> Tensor:
    """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""
    return surrounded(lambda rows: product(rows, packed.decode, [range(packed.shape[0])]), x, **around)


def packed_linear_transposed(y: Tensor, packed: Packed4, **around: Unpack[Around]) -> Tensor:
    """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""
    f, d = packed.shape
    return surrounded(lambda rows: product_transposed(rows, packed.decode, [range(f)], d), y, **around)


def _decoded(packed: Packed4, start: int, stop: int) -> Tensor:
    """Decode rows in scratch memory, float32 (stop − start, d), with the whole blocks around them."""
    (f, d), block = packed.shape, packed.block
    first, last = start * d // block, -(-stop * d // block)
    begin, end = first * block, min(last * block, f * d + f * d % 2)
    device = packed.codes.device
    flat = scratch("decoded", (last - first) * block, torch.float32, device)
    index = scratch("codes", (end - begin) // 2, torch.int32, device)
    index.copy_(packed.codes[begin // 2 : end // 2])
    torch.index_select(packed.pairs, 0, index, out=flat[: end - begin].view(torch.int64))
    flat.view(-1, block).mul_(packed.scales(first, last)[:, None])
    return flat[start * d - begin : stop * d - begin].view(stop - start, d)

"""4-bit codes to numbers, on the device: tiles for a GEMM, and any rectangle of a matrix written out.

A value is ``table[code] · absmax[flat // block]``, one float32 product, then rounded to the compute dtype: bit for bit
what the torch twin decodes, as long as products and sums are not contracted (`launching.FP_FUSION`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detjac_kernels.device.launching import launch
from detjac_kernels.four_bit import Packed4

_BYTES = 64
"""Bytes of a row that one program decodes, at most."""


@triton.jit
def block_scales(
    index, mask, absmax, nested_table, nested_absmax, offset, NESTED: tl.constexpr, NESTED_BLOCK: tl.constexpr
):
    """Scales of quantisation blocks, the second quantisation of the scales undone; any value outside ``mask``."""
    if NESTED:
        outer = tl.load(nested_absmax + index.to(tl.uint32) // NESTED_BLOCK, mask=mask)
        inner = tl.load(absmax + index, mask=mask).to(tl.int32)
        return tl.load(nested_table + inner) * outer + offset
    else:
        return tl.load(absmax + index, mask=mask)


@triton.jit
def byte_values(codes, table, PAIR: tl.constexpr):
    """Both values of every byte of a tile, unscaled: the high nibble's, then the low one's.

    ``table`` holds 16 float32 values, or with ``PAIR`` 256 integers of two bfloat16 (high nibble in the low half).
    """
    ROWS: tl.constexpr = codes.shape[0]
    BYTES: tl.constexpr = codes.shape[1]
    if PAIR:
        both = tl.gather(table, tl.reshape(codes.to(tl.int32), (ROWS * BYTES,)), 0)
        high = (both << 16).to(tl.float32, bitcast=True)
        low = (both & -65536).to(tl.float32, bitcast=True)
    else:
        high = tl.gather(table, tl.reshape((codes >> 4).to(tl.int32), (ROWS * BYTES,)), 0)
        low = tl.gather(table, tl.reshape((codes & 15).to(tl.int32), (ROWS * BYTES,)), 0)
    return tl.reshape(high, (ROWS, BYTES)), tl.reshape(low, (ROWS, BYTES))


@triton.jit
def weight_tile(
    codes,
    absmax,
    table,
    nested_table,
    nested_absmax,
    offset,
    rows,
    column,
    f,
    d,
    WIDTH: tl.constexpr,
    QUANT_BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    PAIR: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
):
    """Decode ``rows`` × ``WIDTH`` columns from ``column`` on, a multiple of ``WIDTH``; zeros outside the matrix.

    ``d`` is a multiple of ``QUANT_BLOCK``, and of the two widths one divides the other: a tile holds whole blocks, or
    lies in one.
    """
    ROWS: tl.constexpr = rows.shape[0]
    HALF: tl.constexpr = WIDTH // 2
    BLOCKS: tl.constexpr = 1 if WIDTH <= QUANT_BLOCK else WIDTH // QUANT_BLOCK
    byte = column // 2 + tl.arange(0, HALF)
    if BLOCKS == 1:
        index = rows * (d // QUANT_BLOCK) + column // QUANT_BLOCK
        known = rows < f
    else:
        first = column + QUANT_BLOCK * tl.arange(0, BLOCKS)
        index = rows[:, None] * (d // QUANT_BLOCK) + (first // QUANT_BLOCK)[None, :]
        known = (rows < f)[:, None] & (first < d)[None, :]
    if EVEN:
        packed = tl.load(codes + rows[:, None] * (d // 2) + byte[None, :])
        scales = block_scales(index, None, absmax, nested_table, nested_absmax, offset, NESTED, NESTED_BLOCK)
    else:
        inside = (rows < f)[:, None] & (byte < d // 2)[None, :]
        packed = tl.load(codes + rows[:, None] * (d // 2) + byte[None, :], mask=inside, other=0)
        scales = block_scales(index, known, absmax, nested_table, nested_absmax, offset, NESTED, NESTED_BLOCK)
        scales = tl.where(known, scales, 0.0)
    high, low = byte_values(packed, table, PAIR)
    if BLOCKS == 1:
        high, low = high * scales[:, None], low * scales[:, None]
    else:
        high = tl.reshape(tl.reshape(high, (ROWS, BLOCKS, HALF // BLOCKS)) * scales[:, :, None], (ROWS, HALF))
        low = tl.reshape(tl.reshape(low, (ROWS, BLOCKS, HALF // BLOCKS)) * scales[:, :, None], (ROWS, HALF))
    return tl.reshape(tl.join(high.to(COMPUTE_DTYPE), low.to(COMPUTE_DTYPE)), (ROWS, WIDTH))


@triton.jit
def decode_rectangle_kernel(
    codes,
    absmax,
    table,
    nested_table,
    nested_absmax,
    offset,
    out,
    row,
    column,
    height,
    width,
    d,
    out_stride,
    QUANT_BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    """Write rows ``row …`` and columns ``column …`` of the decoded matrix to ``out`` (height, width)."""
    at_row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    at_byte = tl.program_id(0) * BLOCK_BYTES + tl.arange(0, BLOCK_BYTES)
    inside = (at_row < height)[:, None] & (at_byte < width // 2)[None, :]
    flat = (row + at_row).to(tl.int64)[:, None] * d + (column + 2 * at_byte)[None, :]
    packed = tl.load(codes + flat // 2, mask=inside, other=0)
    scales = block_scales(
        flat // QUANT_BLOCK, inside, absmax, nested_table, nested_absmax, offset, NESTED, NESTED_BLOCK
    )
    high, low = byte_values(packed, tl.load(table + tl.arange(0, 16)), False)
    values = tl.reshape(tl.join(high * scales, low * scales), (BLOCK_ROWS, 2 * BLOCK_BYTES))
    at_column = tl.program_id(0) * BLOCK_BYTES * 2 + tl.arange(0, 2 * BLOCK_BYTES)
    tl.store(
        out + at_row.to(tl.int64)[:, None] * out_stride + at_column[None, :],
        values.to(out.dtype.element_ty),
        mask=(at_row < height)[:, None] & (at_column < width)[None, :],
    )


def packed_arguments(packed: Packed4) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """Return codes, absmax, table, nested table, nested absmax and offset; without nesting, stand-ins never read."""
    nested = packed.nested
    if nested is None:
        return packed.codes, packed.absmax, packed.table, packed.table, packed.table, 0.0
    return packed.codes, packed.absmax, packed.table, nested.table, nested.absmax, nested.offset


def decode_rectangle(packed: Packed4, rows: range, columns: range, out: Tensor) -> Tensor:
    """Decode a rectangle of the matrix into ``out``, (rows, columns), and return it.

    Parameters
    ----------
    packed : Packed4
        Of an even number of columns.
    rows, columns : range
        Without steps; ``columns`` starts and stops at even numbers.
    out : Tensor, shape (rows, columns)
        Columns without gaps; each weight is computed in float32, then rounded to its dtype.
    """
    tile_bytes = min(_BYTES, triton.next_power_of_2(max(len(columns) // 2, 1)))
    tile_rows = 2048 // tile_bytes
    if not len(rows) or not len(columns):
        return out
    launch(
        decode_rectangle_kernel,
        (triton.cdiv(len(columns) // 2, tile_bytes), triton.cdiv(len(rows), tile_rows)),
        *packed_arguments(packed),
        out,
        rows.start,
        columns.start,
        len(rows),
        len(columns),
        packed.shape[1],
        out.stride(0),
        QUANT_BLOCK=packed.block,
        NESTED=packed.nested is not None,
        NESTED_BLOCK=256 if packed.nested is None else packed.nested.block,
        BLOCK_ROWS=tile_rows,
        BLOCK_BYTES=tile_bytes,
        num_warps=4,
    )
    return out


def pair_table(table: Tensor) -> Tensor:
    """Return both values of every byte as bfloat16 in one integer, the high nibble's in the low half: int32 (256,).

    It halves the look-ups and rounds the code before the scale is applied: up to 2⁻⁹ of each weight, 2e-3 of a product
    at the most, against the exact table.
    """
    byte = torch.arange(256, device=table.device)
    rounded = torch.stack([table[byte >> 4], table[byte & 15]], dim=1).to(torch.bfloat16)
    return rounded.view(torch.int32).view(-1)

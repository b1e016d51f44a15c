"""GEMM with a 4-bit weight in both directions, decoded tile by tile, with the prologue and epilogue of a frozen branch.

One program makes ``BLOCK_ROWS`` × ``BLOCK_OUT`` of the product. A decoded tile serves all its rows and is never
written out. With ``WEIGHT_LEFT`` the product is made transposed (W xᵀ), so that the 64 rows that Hopper's matrix
instruction asks for are the weight's, however few rows x has. The reduction may be cut into ``split`` parts, whose sums
a second kernel adds in a fixed order: few programs would leave most of the device idle, and atomic additions would not
give the same bits twice.
"""

import triton
import triton.language as tl

from detjac_kernels.device.decode import weight_tile


@triton.jit
def finish(
    sums,
    rows,
    columns,
    R,
    N,
    row_scale,
    gate,
    gate_index,
    out_scale,
    add,
    out,
    stride_gate,
    stride_add,
    stride_out,
    ROW_SCALE: tl.constexpr,
    GATE: tl.constexpr,
    GATE_INDEX: tl.constexpr,
    OUT_SCALE: tl.constexpr,
    ADD: tl.constexpr,
):
    """Store ``((row_scale sums) ∘ gate) ∘ out_scale + add``, all in float32 before the one rounding."""
    inside = (rows < R)[:, None] & (columns < N)[None, :]
    if ROW_SCALE:
        sums *= tl.load(row_scale + rows, mask=rows < R, other=0.0).to(tl.float32)[:, None]
    if GATE:
        gate_rows = tl.load(gate_index + rows, mask=rows < R, other=0) if GATE_INDEX else rows
        factors = tl.load(
            gate + gate_rows.to(tl.int64)[:, None] * stride_gate + columns[None, :], mask=inside, other=0.0
        )
        sums *= factors.to(tl.float32)
    if OUT_SCALE:
        sums *= tl.load(out_scale + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if ADD:
        more = tl.load(add + rows.to(tl.int64)[:, None] * stride_add + columns[None, :], mask=inside, other=0.0)
        sums += more.to(tl.float32)
    tl.store(
        out + rows.to(tl.int64)[:, None] * stride_out + columns[None, :], sums.to(out.dtype.element_ty), mask=inside
    )


@triton.jit
def packed_gemm_kernel(
    x,
    codes,
    absmax,
    table,
    nested_table,
    nested_absmax,
    offset,
    scale,
    row_scale,
    gate,
    gate_index,
    out_scale,
    add,
    out,
    partial,
    R,
    f,
    d,
    stride_x,
    stride_gate,
    stride_add,
    stride_out,
    split,
    TRANSPOSED: tl.constexpr,
    QUANT_BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
    PAIR: tl.constexpr,
    SCALE: tl.constexpr,
    ROW_SCALE: tl.constexpr,
    GATE: tl.constexpr,
    GATE_INDEX: tl.constexpr,
    OUT_SCALE: tl.constexpr,
    ADD: tl.constexpr,
    EVEN: tl.constexpr,
    IN_PARTS: tl.constexpr,
    WEIGHT_LEFT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
):
    """``(((x ∘ scale) Wᵀ) ∘ row_scale ∘ gate) ∘ out_scale + add``; with ``TRANSPOSED`` W in the place of Wᵀ."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    N = d if TRANSPOSED else f
    K = f if TRANSPOSED else d
    steps = tl.cdiv(K, BLOCK_IN)
    begin = tl.program_id(2) * steps // split
    end = (tl.program_id(2) + 1) * steps // split
    values = tl.load(table + tl.arange(0, 256 if PAIR else 16))
    if WEIGHT_LEFT:
        sums = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    row_start = x + rows.to(tl.int64) * stride_x
    for step in range(begin, end):
        inner = step * BLOCK_IN + tl.arange(0, BLOCK_IN)
        weight_rows = inner if TRANSPOSED else columns
        weight_column = tl.program_id(1) * BLOCK_OUT if TRANSPOSED else step * BLOCK_IN
        weight = weight_tile(
            codes,
            absmax,
            values,
            nested_table,
            nested_absmax,
            offset,
            weight_rows,
            weight_column,
            f,
            d,
            BLOCK_OUT if TRANSPOSED else BLOCK_IN,
            QUANT_BLOCK,
            NESTED,
            NESTED_BLOCK,
            PAIR,
            EVEN,
            COMPUTE_DTYPE,
        )
        if TRANSPOSED:
            weight = tl.trans(weight)
        if SCALE:
            factors = tl.load(scale + inner) if EVEN else tl.load(scale + inner, mask=inner < K, other=0.0)
        if WEIGHT_LEFT:
            known = (rows < R)[None, :] if EVEN else (rows < R)[None, :] & (inner < K)[:, None]
            tile = tl.load(row_start[None, :] + inner[:, None], mask=known, other=0.0)
            if SCALE:
                tile = tile.to(tl.float32) * factors.to(tl.float32)[:, None]
            sums = tl.dot(weight, tile.to(COMPUTE_DTYPE), sums, input_precision="ieee")
        else:
            known = (rows < R)[:, None] if EVEN else (rows < R)[:, None] & (inner < K)[None, :]
            tile = tl.load(row_start[:, None] + inner[None, :], mask=known, other=0.0)
            if SCALE:
                tile = tile.to(tl.float32) * factors.to(tl.float32)[None, :]
            sums = tl.dot(tile.to(COMPUTE_DTYPE), tl.trans(weight), sums, input_precision="ieee")
    if WEIGHT_LEFT:
        sums = tl.trans(sums)
    if IN_PARTS:
        at = (tl.program_id(2) * R + rows).to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(partial + at, sums, mask=(rows < R)[:, None] & (columns < N)[None, :])
    else:
        finish(
            sums,
            rows,
            columns,
            R,
            N,
            row_scale,
            gate,
            gate_index,
            out_scale,
            add,
            out,
            stride_gate,
            stride_add,
            stride_out,
            ROW_SCALE,
            GATE,
            GATE_INDEX,
            OUT_SCALE,
            ADD,
        )


@triton.jit
def add_parts_kernel(
    partial,
    row_scale,
    gate,
    gate_index,
    out_scale,
    add,
    out,
    R,
    N,
    stride_gate,
    stride_add,
    stride_out,
    split,
    ROW_SCALE: tl.constexpr,
    GATE: tl.constexpr,
    GATE_INDEX: tl.constexpr,
    OUT_SCALE: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Add the ``split`` parts of a product, (split, R, N), in their order, and finish it."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = (rows < R)[:, None] & (columns < N)[None, :]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for part in range(0, split):
        at = (part * R + rows).to(tl.int64)[:, None] * N + columns[None, :]
        sums += tl.load(partial + at, mask=inside, other=0.0)
    finish(
        sums,
        rows,
        columns,
        R,
        N,
        row_scale,
        gate,
        gate_index,
        out_scale,
        add,
        out,
        stride_gate,
        stride_add,
        stride_out,
        ROW_SCALE,
        GATE,
        GATE_INDEX,
        OUT_SCALE,
        ADD,
    )

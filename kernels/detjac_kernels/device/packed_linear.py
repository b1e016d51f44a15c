"""Launching the 4-bit GEMM: the device side of `detjac_kernels.four_bit.packed_linear` and its transpose."""

from functools import cache
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from detjac_kernels.device.configurations import Tiles, tiles
from detjac_kernels.device.decode import packed_arguments, pair_table
from detjac_kernels.device.launching import launch
from detjac_kernels.device.packed_gemm import add_parts_kernel, packed_gemm_kernel
from detjac_kernels.four_bit import Packed4

_COMPUTE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_PROGRAMS_PER_PROCESSOR = 2
"""Programs that should be there for each multiprocessor before the reduction is left in one piece."""

_LEAST_STEPS = 8
"""Steps of the reduction that a part keeps at least."""


def fits(packed: Packed4, dtype: torch.dtype) -> bool:
    """Tell whether the kernel takes a matrix: whole blocks in every row, of at least one step, and 32-bit indices."""
    f, d = packed.shape
    return (
        dtype in _COMPUTE
        and d % packed.block == 0
        and packed.block >= 64
        and not packed.block & (packed.block - 1)
        and f * d < 2**31
    )


def packed_linear(
    x: Tensor,
    packed: Packed4,
    *,
    scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    gate: Tensor | None = None,
    gate_index: Tensor | None = None,
    out_scale: Tensor | None = None,
    add: Tensor | None = None,
    pairs: bool = False,
    chosen: Tiles | None = None,
    split: int | None = None,
) -> Tensor:
    """Return ``(((row_scale x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``; sums and epilogue in float32, rounded once.

    Parameters
    ----------
    x : Tensor, shape (R, d)
        float32, bfloat16 or float16: also what the decoded weights are rounded to.
    packed : Packed4, shape (f, d)
        One that `fits`.
    scale : Tensor, shape (d,), optional
    row_scale : Tensor, shape (R,), optional
    gate : Tensor, shape (R, f), optional
        Or (positions, f), with ``gate_index``.
    gate_index : Tensor, shape (R,), optional
        The row of ``gate`` that belongs to each row of ``x``.
    out_scale : Tensor, shape (f,), optional
    add : Tensor, shape (R, f), optional
    pairs : bool
        Look both codes of a byte up at once, rounded to bfloat16 before they are scaled (`decode.pair_table`). The
        weight is then another one, by up to 2⁻⁹ of each value: take it in both directions or in none.
    chosen : Tiles, optional
    split : int, optional
        Parts of the reduction.

    Returns
    -------
    Tensor, shape (R, f)
    """
    return _launch(x, packed, False, scale, row_scale, gate, gate_index, out_scale, add, pairs, chosen, split)


def packed_linear_transposed(
    y: Tensor,
    packed: Packed4,
    *,
    scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    gate: Tensor | None = None,
    gate_index: Tensor | None = None,
    out_scale: Tensor | None = None,
    add: Tensor | None = None,
    pairs: bool = False,
    chosen: Tiles | None = None,
    split: int | None = None,
) -> Tensor:
    """Return ``(((row_scale y ∘ scale) W) ∘ gate) ∘ out_scale + add``: as `packed_linear` with d and f exchanged."""
    return _launch(y, packed, True, scale, row_scale, gate, gate_index, out_scale, add, pairs, chosen, split)


def _launch(
    x: Tensor,
    packed: Packed4,
    transposed: bool,
    scale: Tensor | None,
    row_scale: Tensor | None,
    gate: Tensor | None,
    gate_index: Tensor | None,
    out_scale: Tensor | None,
    add: Tensor | None,
    pairs: bool,
    chosen: Tiles | None,
    split: int | None,
) -> Tensor:
    (f, d), rows = packed.shape, x.shape[0]
    n, k = (d, f) if transposed else (f, d)
    if not fits(packed, x.dtype):
        raise ValueError(f"no kernel for a matrix {f} × {d} in blocks of {packed.block} and rows of {x.dtype}")
    out = x.new_empty(rows, n)
    if not rows:
        return out
    chosen = chosen or tiles(rows, transposed, x.dtype, _capability(x.device))
    if scale is not None and not chosen.scale_inside:
        x, scale = (x * scale).to(x.dtype), None
    x = x if x.stride(1) == 1 else x.contiguous()
    gate = gate if gate is None or gate.stride(1) == 1 else gate.contiguous()
    add = add if add is None or add.stride(1) == 1 else add.contiguous()
    tall, wide = triton.cdiv(rows, chosen.rows), triton.cdiv(n, chosen.out)
    split = split or parts(tall * wide, triton.cdiv(k, chosen.reduce), _processors(x.device))
    partial = x.new_empty((split, rows, n), dtype=torch.float32) if split > 1 else out
    codes, absmax, table, nested_table, nested_absmax, offset = packed_arguments(packed)
    # Operands that are not there are stood in for by a tensor that is: a kernel without them never reads it.
    vectors = [other if other is None else other.contiguous() for other in (row_scale, gate_index, out_scale)]
    given = (vectors[0], gate, *vectors[1:], add)
    operands = [out if other is None else other for other in given]
    strides = [0 if other is None else other.stride(0) for other in (gate, add)] + [out.stride(0)]
    flags = {
        "ROW_SCALE": row_scale is not None,
        "GATE": gate is not None,
        "GATE_INDEX": gate_index is not None,
        "OUT_SCALE": out_scale is not None,
        "ADD": add is not None,
    }
    launch(
        packed_gemm_kernel,
        (tall, wide, split),
        x,
        codes,
        absmax,
        _pairs_of(packed) if pairs else table,
        nested_table,
        nested_absmax,
        offset,
        out if scale is None else scale.contiguous(),
        *operands,
        out,
        partial,
        rows,
        f,
        d,
        x.stride(0),
        *strides,
        split,
        TRANSPOSED=transposed,
        QUANT_BLOCK=packed.block,
        NESTED=packed.nested is not None,
        NESTED_BLOCK=256 if packed.nested is None else packed.nested.block,
        PAIR=pairs,
        SCALE=scale is not None,
        IN_PARTS=split > 1,
        EVEN=n % chosen.out == 0 and k % chosen.reduce == 0,
        WEIGHT_LEFT=chosen.weight_left,
        BLOCK_ROWS=chosen.rows,
        BLOCK_OUT=chosen.out,
        BLOCK_IN=chosen.reduce,
        COMPUTE_DTYPE=_COMPUTE[x.dtype],
        **flags,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    if split > 1:
        launch(
            add_parts_kernel,
            (triton.cdiv(rows, 16), triton.cdiv(n, 128)),
            partial,
            *operands,
            out,
            rows,
            n,
            *strides,
            split,
            **flags,
            BLOCK_ROWS=16,
            BLOCK_OUT=128,
        )
    return out


_pair_tables: WeakKeyDictionary[Packed4, Tensor] = WeakKeyDictionary()


def _pairs_of(packed: Packed4) -> Tensor:
    if packed not in _pair_tables:
        _pair_tables[packed] = pair_table(packed.table)
    return _pair_tables[packed]


def parts(programs: int, steps: int, processors: int) -> int:
    """Return into how many parts to cut a reduction of ``steps`` so that every multiprocessor has work."""
    wanted = triton.cdiv(_PROGRAMS_PER_PROCESSOR * processors, programs)
    return max(1, min(wanted, steps // _LEAST_STEPS))


@cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

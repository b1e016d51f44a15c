"""How each kernel is compiled: the types of its arguments and the constants of a configuration."""

from typing import Any

import triton
import triton.language as tl

from bench.kernels.resources import Resources, compiled
from detjac_kernels.device import captures
from detjac_kernels.device.configurations import Tiles
from detjac_kernels.device.decode import decode_rectangle_kernel
from detjac_kernels.device.launching import FP_FUSION
from detjac_kernels.device.mixing import MixingTiles
from detjac_kernels.device.mixing_kernel import mixing_kernel
from detjac_kernels.device.packed_gemm import add_parts_kernel, packed_gemm_kernel

_POINTER = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
_NUMBER = {"float32": tl.float32, "bfloat16": tl.bfloat16, "float16": tl.float16}


def packed_gemm(
    architecture: int,
    transposed: bool,
    number: str,
    chosen: Tiles,
    *,
    pairs: bool = False,
    even: bool = True,
    nested: bool = True,
    in_parts: bool = False,
) -> Resources:
    """Compile the 4-bit GEMM with every prologue and every epilogue."""
    types = dict.fromkeys(("x", "gate", "add", "out"), _POINTER[number])
    types |= {
        "codes": "*u8",
        "absmax": "*u8" if nested else "*fp32",
        "table": "*i32" if pairs else "*fp32",
        "offset": "fp32",
    }
    floats = ("nested_table", "nested_absmax", "scale", "row_scale", "out_scale", "partial")
    types |= dict.fromkeys(floats, "*fp32") | {"gate_index": "*i64"}
    strides = ("stride_x", "stride_gate", "stride_add", "stride_out")
    types |= dict.fromkeys(("R", "f", "d", "split", *strides), "i32")
    flags = ("ROW_SCALE", "GATE", "GATE_INDEX", "OUT_SCALE", "ADD")
    constants: dict[str, Any] = dict.fromkeys(flags, True) | {
        "TRANSPOSED": transposed,
        "QUANT_BLOCK": 64,
        "NESTED": nested,
        "NESTED_BLOCK": 256,
        "PAIR": pairs,
        "SCALE": chosen.scale_inside,
        "IN_PARTS": in_parts,
        "EVEN": even,
        "WEIGHT_LEFT": chosen.weight_left,
        "BLOCK_ROWS": chosen.rows,
        "BLOCK_OUT": chosen.out,
        "BLOCK_IN": chosen.reduce,
        "COMPUTE_DTYPE": _NUMBER[number],
    }
    return compiled(
        packed_gemm_kernel,
        architecture,
        types,
        constants,
        ("f", "d", *strides),
        num_warps=chosen.warps,
        num_stages=chosen.stages,
        enable_fp_fusion=FP_FUSION,
    )


def parts(architecture: int, number: str) -> Resources:
    """Compile the sum of the parts of a product, with every epilogue."""
    types = dict.fromkeys(("gate", "add", "out"), _POINTER[number]) | dict.fromkeys(
        ("partial", "row_scale", "out_scale"), "*fp32"
    )
    strides = ("stride_gate", "stride_add", "stride_out")
    types |= {"gate_index": "*i64"} | dict.fromkeys(("R", "N", "split", *strides), "i32")
    flags: dict[str, Any] = dict.fromkeys(("ROW_SCALE", "GATE", "GATE_INDEX", "OUT_SCALE", "ADD"), True)
    sizes = {"BLOCK_ROWS": 16, "BLOCK_OUT": 128}
    return compiled(
        add_parts_kernel,
        architecture,
        types,
        flags | sizes,
        ("N", *strides),
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=FP_FUSION,
    )


def rectangle(architecture: int, number: str, nested: bool, rows: int) -> Resources:
    """Compile the decoding of a rectangle, in tiles of some rows and 4,096 weights."""
    types = {"codes": "*u8", "absmax": "*u8" if nested else "*fp32", "table": "*fp32", "offset": "fp32"}
    types["out"] = _POINTER[number]
    types |= dict.fromkeys(("nested_table", "nested_absmax"), "*fp32")
    types |= dict.fromkeys(("row", "column", "height", "width", "d", "out_stride"), "i32")
    constants = {"QUANT_BLOCK": 64, "NESTED": nested, "NESTED_BLOCK": 256, "BLOCK_ROWS": rows}
    constants["BLOCK_BYTES"] = 2048 // rows
    return compiled(
        decode_rectangle_kernel,
        architecture,
        types,
        constants,
        ("column", "width", "d", "out_stride"),
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=FP_FUSION,
    )


def mixing(
    architecture: int, transposed: bool, number: str, scores: str, head_dim: int, stored: bool, chosen: MixingTiles
) -> Resources:
    """Compile mixing behind a window, with a softcap and both scales; ``scores`` is the dtype of q and k."""
    types = dict.fromkeys(("probabilities", "values", "out"), _POINTER[number])
    types |= dict.fromkeys(("q", "k"), _POINTER[scores])
    types |= dict.fromkeys(("lse", "key_scale", "query_scale"), "*fp32") | {"first": "*i32"}
    types |= dict.fromkeys(("queries", "keys", "columns", "start"), "i32")
    flags: dict[str, Any] = dict.fromkeys(("CAUSAL", "KEY_SCALE", "QUERY_SCALE"), True)
    constants = flags | {
        "GROUP": 8,
        "HEAD_DIM": head_dim,
        "PADDED_DIM": head_dim,
        "SCALING": 0.1,
        "SOFTCAP": 50.0,
        "STORED": stored,
        "TRANSPOSED": transposed,
        "BLOCK_OWN": chosen.own,
        "BLOCK_OTHER": chosen.other,
        "BLOCK_COLUMNS": chosen.columns,
        "SCORE_DTYPE": _NUMBER[scores],
        "COMPUTE_DTYPE": _NUMBER[number],
    }
    return compiled(
        mixing_kernel,
        architecture,
        types,
        constants,
        ("columns",),
        num_warps=chosen.warps,
        num_stages=chosen.stages,
        enable_fp_fusion=FP_FUSION,
    )


def norm(architecture: int, number: str, d: int) -> Resources:
    """Compile the norm of rows of ``d`` columns."""
    types = dict.fromkeys(("x", "weight", "normed"), _POINTER[number]) | {"rstd": "*fp32", "eps": "fp32"}
    types |= dict.fromkeys(("d", "stride_x"), "i32")
    return compiled(
        captures.rms_norm_kernel,
        architecture,
        types,
        {"PLUS_ONE": True, "BLOCK": triton.next_power_of_2(d)},
        ("d", "stride_x"),
        num_warps=captures.norm_warps(d),
        num_stages=3,
        enable_fp_fusion=FP_FUSION,
    )


def gate(architecture: int, number: str) -> Resources:
    """Compile the product of a gated MLP, with a float32 factor that rstd is folded into."""
    types = dict.fromkeys(("gate", "up", "product"), _POINTER[number]) | dict.fromkeys(("rstd", "factor"), "*fp32")
    types |= dict.fromkeys(("f", "stride_gate", "stride_up"), "i32")
    return compiled(
        captures.gate_kernel,
        architecture,
        types,
        {"TANH": True, "RSTD": True, "BLOCK": captures.GATE_BLOCK},
        ("f", "stride_gate", "stride_up"),
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=FP_FUSION,
    )

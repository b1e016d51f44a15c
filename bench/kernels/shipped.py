"""Every kernel in every configuration that is shipped, with all it can be asked to do switched on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import triton.language as tl

from bench.kernels.resources import Resources, compiled
from detjac_kernels.device.configurations import Tiles, shipped
from detjac_kernels.device.decode import FP_FUSION, decode_rectangle_kernel
from detjac_kernels.device.packed_gemm import add_parts_kernel, packed_gemm_kernel

ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class Case:
    """One thing to compile.

    ``rows`` is the height of its tile, ``weights`` how many weights a step of its loop decodes (0 where that is not
    what its loop does), ``table`` "exact", "pairs" or nothing, ``matrix_products`` whether it should have matrix
    instructions.
    """

    kernel: str
    architecture: int
    what: str
    compile: Callable[[], Resources]
    rows: int = 0
    weights: int = 0
    table: str = ""
    matrix_products: bool = False

    @property
    def name(self) -> str:
        """Kernel, architecture and configuration in one line."""
        return f"{self.kernel}, sm_{self.architecture}, {self.what}"


def cases() -> list[Case]:
    """Return everything shipped."""
    return [*_packed_gemms(), *_around_packed_gemms()]


def compile_case(index: int) -> Resources:
    """Compile the case of a number: what a worker process is asked to do."""
    return cases()[index].compile()


def compile_all(workers: int = 2) -> list[tuple[Case, Resources]]:
    """Compile everything shipped, in processes beside one another."""
    everything = cases()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(zip(everything, pool.map(compile_case, range(len(everything))), strict=True))


def _packed_gemms() -> Iterator[Case]:
    """Tiles that several numbers of rows share are one case. float32 multiplies in its loop, without matrix units."""
    seen: dict[tuple[int, bool, int, Tiles, bool], None] = {}
    for (architecture, transposed, width, _), chosen in shipped().items():
        for pairs in (False, True) if width == 2 else (False,):
            seen[architecture, transposed, width, chosen, pairs] = None
    for architecture, transposed, width, chosen, pairs in seen:
        number, table = ("float32" if width == 4 else "bfloat16"), ("pairs" if pairs else "exact")
        yield Case(
            "4-bit GEMM",
            architecture,
            f"{'y W' if transposed else 'x Wᵀ'}, {chosen.rows}×{chosen.out}×{chosen.reduce}, {number}, {table}",
            partial(packed_gemm, architecture, transposed, width, chosen, pairs),
            chosen.rows,
            chosen.out * chosen.reduce if width == 2 else 0,
            table,
            width == 2,
        )


def _around_packed_gemms() -> Iterator[Case]:
    for architecture in ARCHITECTURES:
        yield Case("sum of parts", architecture, "16×128, 4 parts", partial(parts, architecture))
        yield Case("decoded rectangle", architecture, "32×64", partial(rectangle, architecture))


def packed_gemm(architecture: int, transposed: bool, width: int, chosen: Tiles, pairs: bool) -> Resources:
    """Compile the 4-bit GEMM with nested scales, every prologue and every epilogue."""
    number = {4: "fp32", 2: "bf16"}[width]
    types = dict.fromkeys(("x", "gate", "add", "out"), f"*{number}")
    types |= {"codes": "*u8", "absmax": "*u8", "table": "*i32" if pairs else "*fp32", "offset": "fp32"}
    floats = ("nested_table", "nested_absmax", "scale", "row_scale", "out_scale", "partial")
    types |= dict.fromkeys(floats, "*fp32") | {"gate_index": "*i64"}
    strides = ("stride_x", "stride_gate", "stride_add", "stride_out")
    types |= dict.fromkeys(("R", "f", "d", *strides), "i32")
    flags = ("NESTED", "ROW_SCALE", "GATE", "GATE_INDEX", "OUT_SCALE", "ADD", "EVEN")
    constants: dict[str, Any] = dict.fromkeys(flags, True) | {
        "TRANSPOSED": transposed,
        "QUANT_BLOCK": 64,
        "NESTED_BLOCK": 256,
        "PAIR": pairs,
        "SCALE": chosen.scale_inside,
        "SPLIT": 1,
        "WEIGHT_LEFT": chosen.weight_left,
        "BLOCK_ROWS": chosen.rows,
        "BLOCK_OUT": chosen.out,
        "BLOCK_IN": chosen.reduce,
        "COMPUTE_DTYPE": {4: tl.float32, 2: tl.bfloat16}[width],
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


def parts(architecture: int) -> Resources:
    """Compile the sum of four parts of a product, with every epilogue."""
    types = dict.fromkeys(("gate", "add", "out"), "*bf16") | dict.fromkeys(
        ("partial", "row_scale", "out_scale"), "*fp32"
    )
    strides = ("stride_gate", "stride_add", "stride_out")
    types |= {"gate_index": "*i64"} | dict.fromkeys(("R", "N", *strides), "i32")
    flags: dict[str, Any] = dict.fromkeys(("ROW_SCALE", "GATE", "GATE_INDEX", "OUT_SCALE", "ADD"), True)
    sizes = {"SPLIT": 4, "BLOCK_ROWS": 16, "BLOCK_OUT": 128}
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


def rectangle(architecture: int) -> Resources:
    """Compile the decoding of a rectangle to bfloat16, with nested scales."""
    types = {"codes": "*u8", "absmax": "*u8", "table": "*fp32", "offset": "fp32", "out": "*bf16"}
    types |= dict.fromkeys(("nested_table", "nested_absmax"), "*fp32")
    types |= dict.fromkeys(("row", "column", "height", "width", "d", "out_stride"), "i32")
    constants = {"QUANT_BLOCK": 64, "NESTED": True, "NESTED_BLOCK": 256, "BLOCK_ROWS": 32, "BLOCK_BYTES": 64}
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

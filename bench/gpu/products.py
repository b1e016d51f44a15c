"""Seconds of every road to a 4-bit product, at the shapes of one block, beside the floor."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from bench.gpu.packed import random_matrix
from bench.gpu.rates import Rates, dequantised_floor, fused_floor
from bench.gpu.sizes import Sizes
from bench.gpu.timing import Row, time_roads
from detjac_kernels import packed_roads
from detjac_kernels.device.decode import decode_rectangle
from detjac_kernels.four_bit import Packed4

ROADS = ("fused", "fused pairs", "cached parts", "dequantise + GEMM", "bitsandbytes")


def times(sizes: Sizes, rates: Rates) -> list[Row]:
    """Time every road for every matrix, direction and number of rows."""
    rows_of_table = []
    for name, (f, d) in sizes.matrices.items():
        packed = random_matrix(f, d, sizes.device)
        for transposed in (False, True):
            for rows in sizes.rows:
                x = torch.randn(rows, f if transposed else d, device=sizes.device, dtype=sizes.dtype)
                row: Row = {"matrix": name, "transposed": transposed, "rows": rows}
                time_roads(row, sizes.device, _roads(x, packed, transposed))
                row["floor, fused"] = fused_floor(rates, f * d, rows)
                row["floor, dequantised"] = dequantised_floor(rates, f * d, rows, sizes.dtype.itemsize)
                rows_of_table.append(row)
    return rows_of_table


def sums(table: list[Row], layers: int) -> list[Row]:
    """Add up a sweep through all blocks for every number of rows: forwards and transposed, halved.

    A road that failed for one matrix has no sum. bitsandbytes has no transposed product of its own: dequantise + GEMM
    stands there.
    """
    totals = []
    for rows in sorted({row["rows"] for row in table}):
        chosen = [row for row in table if row["rows"] == rows]
        total: Row = {"rows": rows}
        for road in (*ROADS, "floor, fused", "floor, dequantised"):
            stand_in = "dequantise + GEMM" if road == "bitsandbytes" else road
            parts = [row.get(stand_in if row["transposed"] else road) for row in chosen]
            total[road] = None if None in parts else layers * sum(parts) / 2
        totals.append(total)
    return totals


def break_even(totals: list[Row]) -> float | None:
    """Return the least number of rows at which dequantise + GEMM is as fast as fused; None beyond the last.

    Between two measured numbers of rows the difference is taken to be a straight line.
    """
    both = [row for row in totals if row["fused"] is not None and row["dequantise + GEMM"] is not None]
    lead = [(row["rows"], row["dequantise + GEMM"] - row["fused"]) for row in both]
    if lead and lead[0][1] <= 0:
        return float(lead[0][0])
    for (r, ahead), (s, behind) in pairwise(lead):
        if behind <= 0:
            return float(r + (s - r) * ahead / (ahead - behind))
    return None


def _roads(x: Tensor, packed: Packed4, transposed: bool) -> dict[str, Callable[[], Tensor]]:
    f, d = packed.shape
    whole = torch.empty(f, d, dtype=x.dtype, device=x.device)

    def dequantised() -> Tensor:
        decode_rectangle(packed, range(f), range(d), whole)
        return x @ (whole if transposed else whole.t())

    roads: dict[str, Callable[[], Tensor]] = {
        "fused": lambda: packed_roads.fused(x, packed, transposed),
        "fused pairs": lambda: packed_roads.fused(x, packed, transposed, pairs=True),
        "cached parts": lambda: packed_roads.dequantised(x, packed, transposed),
        "dequantise + GEMM": dequantised,
    }
    if not transposed:
        roads["bitsandbytes"] = lambda: packed_roads.by_bitsandbytes(x, packed)
    return roads

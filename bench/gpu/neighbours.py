"""Seconds of the kernels beside the 4-bit product, mixing and captures, with their twins and the floor of each."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.rates import Rates, floor
from bench.gpu.sizes import Sizes
from bench.gpu.timing import Row, time_roads
from bench.gpu.verify import attention
from detjac_kernels import captures, mixing, rebuilt_mixing

WIDTH = 4
"""Columns of a block: a head of mixing carries its dimension times as many."""

Kernel = tuple[str, Callable[[], Any], Callable[[], Any], int, int]
"""What, the kernel, its twin, the bytes that have to move and the operations that have to be done."""


def times(sizes: Sizes, rates: Rates) -> list[Row]:
    """Time every kernel at the sizes of one block and a long prompt."""
    torch.manual_seed(0)
    rows = []
    for what, kernel, twin, moved, operations in [*_mixing(sizes), *_captures(sizes)]:
        row: Row = {"what": what, "positions": sizes.positions, "floor": floor(rates, moved, operations)}
        rows.append(time_roads(row, sizes.device, {"kernel": kernel, "twin": twin}))
    return rows


def _mixing(sizes: Sizes) -> Iterator[Kernel]:
    """Causal attention: half of the weights are seen. Rebuilt, only they count in the floor; stored, all are read."""
    from detjac_kernels.device import mixing as device

    heads, kv_heads, n, width = sizes.heads, sizes.kv_heads, sizes.positions, sizes.head_dim
    group, columns = heads // kv_heads, WIDTH * width
    seen = heads * n * (n + 1) // 2
    q, k, lse, first = attention(sizes, sizes.dtype, n, None)
    at = torch.arange(n, device=sizes.device)
    p = torch.rand(kv_heads, group, n, n, device=sizes.device).masked_fill_(at > at[:, None], 0)
    p = p.flatten(1, 2).to(sizes.dtype)
    for transposed in (False, True):
        suffix = "_transposed" if transposed else ""
        values = torch.randn(kv_heads, group * n if transposed else n, columns, device=sizes.device).to(sizes.dtype)
        ends = values.nbytes + values.element_size() * kv_heads * (n if transposed else group * n) * columns
        operands, name = (q, k, lse, first, values), f"mix_rebuilt{suffix}"
        kernel, twin = (
            partial(getattr(side, name), *operands, scaling=width**-0.5) for side in (device, rebuilt_mixing)
        )
        yield name, kernel, twin, ends + q.nbytes + k.nbytes + lse.nbytes, 2 * seen * (columns + width)
        name = f"mix{suffix}"
        kernel, twin = (partial(getattr(side, name), p, values) for side in (device, mixing))
        yield f"{name}, P stored", kernel, twin, ends + p.nbytes, 2 * p.numel() * columns


def _captures(sizes: Sizes) -> Iterator[Kernel]:
    """Each reads its operands once and writes its two results once; their few operations are hidden behind that."""
    from detjac_kernels.device import captures as device

    n, size = sizes.positions, sizes.dtype.itemsize
    x, weight = _draw(sizes, n, sizes.hidden), _draw(sizes, sizes.hidden)
    kernel, twin = (partial(side.captured_rms_norm, x, weight, 1e-5) for side in (device, captures))
    yield "norm and rstd", kernel, twin, 2 * x.nbytes + weight.nbytes + 4 * n, 0
    gate, up = _draw(sizes, n, sizes.intermediate), _draw(sizes, n, sizes.intermediate)
    rstd = torch.rand(n, device=sizes.device) + 0.1
    kernel, twin = (partial(side.captured_gate, gate, up, "silu", rstd=rstd) for side in (device, captures))
    yield "gate, silu, rstd folded", kernel, twin, gate.numel() * (3 * size + 4), 0


def _draw(sizes: Sizes, *shape: int) -> Tensor:
    return torch.randn(*shape, device=sizes.device).to(sizes.dtype)

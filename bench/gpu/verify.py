"""Every kernel against its torch twin on this device, in each dtype that the roads take."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.packed import random_matrix
from bench.gpu.sizes import Sizes
from bench.gpu.timing import Row, attempt
from detjac_kernels import captures, four_bit, mixing, packed_roads, rebuilt_mixing
from detjac_kernels.four_bit import Packed4

BARS = {
    ("exact", torch.float32): 5e-6,
    ("exact", torch.bfloat16): 5e-3,
    ("exact", torch.float16): 7e-4,
    ("pairs", torch.float32): 2e-3,
    ("pairs", torch.bfloat16): 6e-3,
    ("pairs", torch.float16): 2.5e-3,
    ("mixing", torch.float32): 5e-6,
    ("mixing", torch.bfloat16): 2e-2,
    ("mixing", torch.float16): 2.5e-3,
    ("captures", torch.float32): 2e-6,
    ("captures", torch.bfloat16): 5e-3,
    ("captures", torch.float16): 7e-4,
}
"""Largest relative difference (Frobenius). In half precision the weights and the result are rounded once each."""

Product = Callable[[], Tensor]
Comparison = tuple[str, str, Product, Product]
"""What, kind of bar, a kernel's product and its twin's: both are made when they are compared."""


def verify(sizes: Sizes, dtypes: tuple[torch.dtype, ...]) -> list[Row]:
    """Return one row for each comparison: what, dtype, relative difference, bar, and whether it passed.

    A kernel that raises fails its own row, which then holds the error.
    """
    torch.manual_seed(0)
    rows = []
    for dtype in dtypes:
        for what, kind, got, expected in [*_packed(sizes, dtype), *_mixing(sizes, dtype), *_captures(sizes, dtype)]:
            row: Row = {"what": what, "dtype": str(dtype), "bar": BARS[kind, dtype]}
            attempt(row, "difference", partial(_difference, got, expected))
            row["passed"] = row.get("difference", float("inf")) <= row["bar"]
            rows.append(row)
    return rows


def _difference(got: Product, expected: Product) -> float:
    wanted = expected().float()
    return float((got().float() - wanted).norm() / wanted.norm())


def _packed(sizes: Sizes, dtype: torch.dtype) -> Iterator[Comparison]:
    from detjac_kernels.device import packed_linear as device

    shapes = {"hidden²": (sizes.hidden, sizes.hidden), "ragged": (sizes.hidden - 24, sizes.hidden // 128 * 64 + 64)}
    for name, (f, d) in shapes.items():
        packed = random_matrix(f, d, sizes.device)
        for transposed in (False, True):
            n, k = (d, f) if transposed else (f, d)
            twin = four_bit.packed_linear_transposed if transposed else four_bit.packed_linear
            kernel = device.packed_linear_transposed if transposed else device.packed_linear
            for rows in sizes.verified_rows:
                x = torch.randn(rows, k, device=sizes.device).to(dtype)
                around = {
                    "scale": torch.rand(k, device=sizes.device) + 0.5,
                    "gate": torch.randn(rows, n, device=sizes.device),
                    "out_scale": torch.randn(n, device=sizes.device),
                    "add": torch.randn(rows, n, device=sizes.device).to(dtype),
                }
                expected = cache(partial(_plain, twin, x, packed, around))
                direction = "y W" if transposed else "x Wᵀ"
                where = f"{direction}, {name}, {rows} rows"
                yield f"4-bit GEMM, {where}", "exact", partial(kernel, x, packed, **around), expected
                bare = cache(partial(_plain, twin, x, packed, {}))
                parts = partial(packed_roads.dequantised, x, packed, transposed)
                yield f"dequantised parts, {where}", "exact", parts, bare
                if not transposed:
                    theirs = partial(packed_roads.by_bitsandbytes, x, packed)
                    yield f"bitsandbytes, {where}", "exact", theirs, bare
                if rows not in (sizes.verified_rows[0], sizes.verified_rows[-1]):
                    continue
                yield f"4-bit GEMM, {where}, 3 parts", "exact", partial(kernel, x, packed, **around, split=3), expected
                yield f"4-bit GEMM, {where}, pairs", "pairs", partial(kernel, x, packed, **around, pairs=True), expected


def _plain(twin: Any, x: Tensor, packed: Packed4, around: dict[str, Tensor]) -> Tensor:
    """Return the twin's product in float32."""
    return twin(x.float(), packed, **{name: tensor.float() for name, tensor in around.items()})


def _mixing(sizes: Sizes, dtype: torch.dtype) -> Iterator[Comparison]:
    from detjac_kernels.device import mixing as device

    heads, kv_heads, n, width = sizes.heads, sizes.kv_heads, sizes.positions, sizes.head_dim
    group, columns = heads // kv_heads, 2 * width
    for window, softcap in ((n, None), (n // 3, 30.0)):
        q, k, lse, first = attention(sizes, dtype, window, softcap)
        options: dict[str, Any] = {
            "scaling": width**-0.5,
            "softcap": softcap,
            "key_scale": torch.rand(n, device=sizes.device) + 0.5,
            "query_scale": torch.rand(heads, n, device=sizes.device) + 0.5,
        }
        for transposed in (False, True):
            rows = group * n if transposed else n
            values = torch.randn(kv_heads, rows, columns, device=sizes.device).to(dtype)
            name = "mix_rebuilt_transposed" if transposed else "mix_rebuilt"
            got, expected = (
                partial(getattr(side, name), q, k, lse, first, values, **options) for side in (device, rebuilt_mixing)
            )
            yield f"{name}, window {window}, softcap {softcap}", "mixing", got, expected
    p = torch.rand(kv_heads, group * n, n, device=sizes.device).softmax(-1).to(dtype)
    for name, rows in (("mix", n), ("mix_transposed", group * n)):
        values = torch.randn(kv_heads, rows, columns, device=sizes.device).to(dtype)
        kernel = partial(getattr(device, name), p, values, group=group)
        yield f"{name}, stored", "mixing", kernel, partial(getattr(mixing, name), p, values)


def attention(
    sizes: Sizes, dtype: torch.dtype, window: int, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random q, k, their log-sum-exp behind a window, and the first key each query sees."""
    heads, kv_heads, n, width = sizes.heads, sizes.kv_heads, sizes.positions, sizes.head_dim
    q = torch.randn(heads, n, width, device=sizes.device).to(dtype)
    k = torch.randn(kv_heads, n, width, device=sizes.device).to(dtype)
    scores = (q @ k.repeat_interleave(heads // kv_heads, 0).transpose(1, 2)).mul_(width**-0.5).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(n, device=sizes.device)
    first = (at - window + 1).int()
    hidden = (at > at[:, None]) | (at < first[:, None])
    return q, k, scores.masked_fill_(hidden, -torch.inf).logsumexp(-1), first


def _captures(sizes: Sizes, dtype: torch.dtype) -> Iterator[Comparison]:
    from detjac_kernels.device import captures as device

    x = torch.randn(33, sizes.hidden, device=sizes.device).to(dtype)
    weight = torch.randn(sizes.hidden, device=sizes.device).to(dtype)
    sides = [cache(partial(side.captured_rms_norm, x, weight, 1e-5)) for side in (device, captures)]
    for i, name in enumerate(("output", "rstd")):
        got, expected = (partial(_item, side, i) for side in sides)
        yield f"norm, {name}", "captures", got, expected
    gate, up = torch.randn(2, 33, sizes.intermediate, device=sizes.device).to(dtype)
    rstd = torch.rand(33, device=sizes.device) + 0.1
    activations: tuple[captures.Activation, ...] = ("silu", "gelu_tanh")
    for activation in activations:
        for folded in (None, rstd):
            sides = [cache(partial(s.captured_gate, gate, up, activation, rstd=folded)) for s in (device, captures)]
            for i, name in enumerate(("product", "factor")):
                got, expected = (partial(_item, side, i) for side in sides)
                yield f"gate, {activation}, {name}{'' if folded is None else ', rstd'}", "captures", got, expected


def _item(made: Callable[[], tuple[Tensor, ...]], index: int) -> Tensor:
    return made()[index]

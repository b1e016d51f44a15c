"""The job: singular vectors of every token of a short prompt, through a model in 4 bits and the library as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

import detjac_lanczos as dl
from bench.gpu.packed import random_llama
from bench.gpu.rates import Rates, fused_floor
from bench.gpu.sizes import Sizes
from bench.gpu.timing import Row, attempt, synchronize, wall
from detjac_kernels import packed_roads
from detjac_kernels.choice import sentence

WIDTH, SWEEPS, K = 4, 26, 4

FORCED = {"fused": ("fused", False), "cached parts": ("dequantise", False), "dequantise + GEMM": ("dequantise", True)}
"""Name to the road that serves every product, and whether it decodes a matrix whole instead of in cached parts."""


def job(row: Row, sizes: Sizes, rates: Rates) -> None:
    """Build the model, detach it, solve and sweep; put seconds of each and the peak of memory into ``row`` as it goes.

    Random weights have a flat spectrum, so a solve says how long its sweeps take, not how many a trained model needs:
    the sweeps are also timed by themselves, 13 forwards and 13 transposed.
    """
    made: dict[str, Any] = {}

    def build() -> None:
        made["model"] = random_llama(sizes.config, sizes.device)

    row["seconds, building"] = wall(sizes.device, build)
    # In bfloat16 residuals stall near 1e-2; a bounded number of products ends a search in a flat spectrum.
    tol = 1e-3 if sizes.dtype is torch.float32 else 3e-2
    planned = dl.plan(
        sizes.config,
        sizes.tokens,
        width=WIDTH,
        k=K,
        tol=tol,
        device="h100",
        dtype=sizes.dtype,
        quantization="nf4-double",
    )
    row["weights, planned GB"] = planned.resident_weights / 1e9
    row["peak, planned GB"] = planned.every_token.peak / 1e9

    def detach() -> None:
        made["network"] = dl.detach((made["model"], None), input_ids=[list(range(sizes.tokens))])

    row["seconds, detach"] = wall(sizes.device, detach)
    network = made["network"]
    row["reconstruction"] = network.reconstruction.relative_error
    row["rows"] = sizes.tokens * WIDTH
    operator = network.jacobian(token="joint")
    row["first sweeps"] = wall(sizes.device, lambda: sweeps(operator, 1, sizes))

    def solve(products: int) -> None:
        made["results"] = dl.svd_batch(
            network.jacobians(), k=K, tol=tol, method="lanczos", block=WIDTH, max_products=products
        )

    solve(2 * WIDTH)  # What measures roads takes memory and time of its own, and they are not the job's.
    with _peak(row, sizes):
        row["seconds, top 4 of every token"] = wall(sizes.device, lambda: solve(SWEEPS * WIDTH))
    results = made["results"]
    row["status"] = [result.status.value for result in results]
    row["largest residual"] = max(float(result.relative.max()) for result in results)
    row["row-sweeps"] = sum(result.work.row_sweeps for result in results)

    timed = partial(wall, sizes.device, lambda: sweeps(operator, SWEEPS // 2, sizes))
    if packed_roads.choices():
        attempt(row, "26 sweeps, measured choice", timed)
        for name, (road, whole) in FORCED.items():
            attempt(row, f"26 sweeps, {name}", lambda road=road, whole=whole: _forced(road, whole, operator, sizes))
    else:
        attempt(row, "26 sweeps, torch twin", timed)
    row["26 sweeps, floor"] = SWEEPS * fused_floor(rates, sizes.weights, sizes.tokens * WIDTH)
    row["CUDA graph"] = graph(lambda: sweeps(operator, 1, sizes), sizes)


def sweeps(operator: Any, pairs: int, sizes: Sizes) -> None:
    """Go forwards and back ``pairs`` times, with `WIDTH` columns for the whole prompt."""
    x = torch.ones(operator.shape[1], WIDTH, device=sizes.device, dtype=operator.dtype)
    for _ in range(pairs):
        y = operator.matmat(x)
        x = operator.rmatmat(y / y.norm())
        x = x / x.norm()


def _forced(road: str, whole: bool, operator: Any, sizes: Sizes) -> float:
    """Return the seconds of 26 sweeps whose products all take one road; a road that fails on the way is an error."""
    chosen = packed_roads.choices()
    cached = packed_roads.cached_bytes
    packed_roads.replay(dict.fromkeys(chosen, road))
    try:
        with patch.object(packed_roads, "cached_bytes", (lambda device: 1 << 62) if whole else cached):
            sweeps(operator, 1, sizes)
            taken = wall(sizes.device, lambda: sweeps(operator, SWEEPS // 2, sizes))
        if set(packed_roads.choices().values()) != {road}:
            raise RuntimeError(f"{road} did not serve every product: {packed_roads.TABLE.failures()}")
        return taken
    finally:
        packed_roads.replay(chosen)


@contextmanager
def _peak(row: Row, sizes: Sizes) -> Iterator[None]:
    """Note the most that torch's allocator held at once on the device, weights included."""
    if sizes.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(sizes.device)
    yield
    if sizes.device.type == "cuda":
        row["peak, GB"] = torch.cuda.max_memory_allocated(sizes.device) / 1e9
        row["peak, measured / planned"] = row["peak, GB"] / row["peak, planned GB"]


def _unchecked(block: torch.Tensor, name: str) -> None:
    """Stand for the check of what an operator is given."""


def graph(work: Callable[[], None], sizes: Sizes) -> Row:
    """Capture two sweeps in a CUDA graph and time its replay; where that cannot be done, say why."""
    if sizes.device.type != "cuda":
        return {"left out": "no CUDA device"}
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        # A block is checked on the host, which a capture forbids; these are known to be finite.
        with patch("detjac_lanczos.operators.differentiable.check_finite", _unchecked), torch.cuda.graph(captured):
            work()
        captured.replay()
        return {
            "26 sweeps": SWEEPS / 2 * wall(sizes.device, captured.replay),
            "26 sweeps, launched": SWEEPS / 2 * wall(sizes.device, work),
        }
    except Exception as error:  # Whatever a capture forbids, in torch, in Triton or here: it is an experiment.
        synchronize(sizes.device)
        return {"left out": sentence(error)}

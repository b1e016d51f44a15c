"""The job: singular vectors of every token of a short prompt, through a model in 4 bits and the library as it is."""

from collections.abc import Callable
from typing import Any

import torch

import detjac_lanczos as dl
from bench.gpu.packed import random_llama
from bench.gpu.rates import Rates, fused_floor
from bench.gpu.sizes import Sizes
from bench.gpu.timing import synchronize, wall
from detjac_kernels import packed_roads

WIDTH, SWEEPS = 4, 26


def job(row: dict[str, Any], sizes: Sizes, rates: Rates) -> None:
    """Build the model, detach it, sweep and solve; put seconds of each and the peak of memory into ``row`` as it goes.

    Random weights have a flat spectrum, so a solve says how long its sweeps take, not how many a trained model needs:
    the sweeps are also timed by themselves, 13 forwards and 13 transposed.
    """
    if sizes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(sizes.device)
    made: dict[str, Any] = {}

    def build() -> None:
        made["model"] = random_llama(sizes.config, sizes.device)

    row["seconds, building"] = wall(sizes.device, build)
    ids = [list(range(sizes.tokens))]

    def detach() -> None:
        made["network"] = dl.detach((made["model"], None), input_ids=ids)

    row["seconds, detach"] = wall(sizes.device, detach)
    network = made["network"]
    row["reconstruction"] = network.reconstruction.relative_error
    rows = sizes.tokens * WIDTH
    operator = network.jacobian(token="joint")
    row["rows"] = rows
    row["first sweeps"] = wall(sizes.device, lambda: sweeps(operator, 1, sizes))
    for name in ("measured choice", "fused", "dequantise"):
        chosen = packed_roads.choices()
        if name != "measured choice":
            packed_roads.replay(dict.fromkeys(chosen, name))
        sweeps(operator, 1, sizes)
        row[f"26 sweeps, {name}"] = wall(sizes.device, lambda: sweeps(operator, SWEEPS // 2, sizes))
        packed_roads.replay(chosen)
    row["26 sweeps, floor"] = SWEEPS * fused_floor(rates, sizes.weights, rows)
    solved: dict[str, Any] = {}

    def solve() -> None:
        # In bfloat16 residuals stall near 1e-2; a bounded number of products ends a search in a flat spectrum.
        tol = 1e-3 if sizes.dtype is torch.float32 else 3e-2
        solved["results"] = dl.svd_batch(
            network.jacobians(), k=4, tol=tol, method="lanczos", block=WIDTH, max_products=SWEEPS * WIDTH
        )

    row["seconds, top 4 of every token"] = wall(sizes.device, solve)
    results = solved["results"]
    row["status"] = [result.status.value for result in results]
    row["largest residual"] = max(float(result.relative.max()) for result in results)
    row["row-sweeps"] = sum(result.work.row_sweeps for result in results)
    if sizes.device.type == "cuda":
        row["peak, GB"] = torch.cuda.max_memory_allocated(sizes.device) / 1e9
    row["CUDA graph"] = graph(lambda: sweeps(operator, 1, sizes), sizes)


def sweeps(operator: Any, pairs: int, sizes: Sizes) -> None:
    """Go forwards and back ``pairs`` times, with `WIDTH` columns for the whole prompt."""
    x = torch.ones(operator.shape[1], WIDTH, device=sizes.device, dtype=operator.dtype)
    for _ in range(pairs):
        y = operator.matmat(x)
        x = operator.rmatmat(y / y.norm())
        x = x / x.norm()


def graph(work: Callable[[], None], sizes: Sizes) -> dict[str, Any]:
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
        with torch.cuda.graph(captured):
            work()
        captured.replay()
        return {
            "26 sweeps": SWEEPS / 2 * wall(sizes.device, captured.replay),
            "26 sweeps, launched": SWEEPS / 2 * wall(sizes.device, work),
        }
    except RuntimeError as error:
        synchronize(sizes.device)
        return {"left out": str(error).splitlines()[0]}

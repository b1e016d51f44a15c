"""What machines do in a second: a table with sources, and this processor measured on the spot."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import psutil
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.ways import Rates


@dataclass(frozen=True)
class Machine:
    """Rates of one device.

    ``type`` as torch names it, "cuda" or "cpu"; ``memory`` in bytes; ``flops`` of a GEMM in the model's precision;
    ``bandwidth`` of its memory and ``link`` of the way to host memory or disk, in bytes a second; ``decode``: packed
    weights decoded in a second.
    """

    name: str
    type: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    decode: float
    source: str

    @property
    def rates(self) -> Rates:
        """Its rates as the memory schedule counts them."""
        kind = Rates.of(torch.device(self.type))
        return replace(kind, flops=self.flops, weights=self.bandwidth / 16, bytes=self.link)


MachineName = Literal["h100", "h200", "a100", "cpu"]
_NVIDIA = {
    "h100": ("NVIDIA H100 SXM 80 GB", 80e9, (989e12, 67e12), 3.35e12, 5e10, 6e11),
    "h200": ("NVIDIA H200 141 GB", 141e9, (989e12, 67e12), 4.8e12, 5e10, 8.5e11),
    "a100": ("NVIDIA A100 SXM 80 GB", 80e9, (312e12, 19.5e12), 2.04e12, 2.2e10, 3.6e11),
}
"""Data sheets: name, memory, GEMM rates in half precision and in float32 or float64 (without TF32), bandwidth; the link
to the host; packed weights decoded in a second."""


def machine(name: str, dtype: torch.dtype) -> Machine:
    """Return a machine by name, with its rates in a precision; ``"cpu"`` is this processor, measured with its threads.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    name = str(name).lower()
    if name == "cpu":
        return _this_processor(dtype)
    if name not in _NVIDIA:
        raise InputError(f"device {name!r} is not in the table; plan for one of {', '.join(get_args(MachineName))}")
    model, memory, (half, full), bandwidth, link, decode = _NVIDIA[name]
    precision = str(dtype).removeprefix("torch.")
    source = (
        f"{name.upper()} data sheet; 80 % of its bandwidth, 70 % of its {precision} rate, decoding bound by 4.5 bytes "
        "moved a weight"
    )
    flops = 0.7 * (half if dtype.itemsize == 2 else full)
    return Machine(model, "cuda", int(memory), flops, 0.8 * bandwidth, link, decode, source)


@in_own_precision
def _this_processor(dtype: torch.dtype) -> Machine:
    own: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "device": "cpu"}
    drawn = partial(torch.randn, dtype=torch.float32, **own)
    x, w = drawn(128, 2048).to(dtype), drawn(2048, 2048).to(dtype)
    flops = 2 * x.shape[0] * w.numel() / _seconds(lambda: x @ w)
    large = torch.empty(1 << 25, dtype=torch.float32, device="cpu")
    bandwidth = 2 * large.nbytes / _seconds(lambda: large.clone())
    codes, table = torch.randint(0, 16, (1 << 20,), **own), drawn(16)
    decode = codes.numel() / _seconds(lambda: table[codes])
    threads = torch.get_num_threads()
    source = f"measured now, {threads} thread{'s' if threads > 1 else ''}; files at 1 GB/s are assumed"
    memory = psutil.virtual_memory().total
    return Machine("this processor", "cpu", memory, flops, bandwidth, 1e9, decode, source)


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest of a few runs, after one to warm up."""
    work()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)

"""What machines do in a second: a table with sources, and this processor measured on the spot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from detjac_lanczos.errors import InputError
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


_NVIDIA = "data sheet; 80 % of its bandwidth, 70 % of its bfloat16 rate, decoding bound by 4.5 bytes moved a weight"

MACHINES = {
    "h100": Machine(
        "NVIDIA H100 SXM 80 GB", "cuda", 80 * 10**9, 0.7 * 989e12, 0.8 * 3.35e12, 5e10, 6e11, f"H100 {_NVIDIA}"
    ),
    "h200": Machine(
        "NVIDIA H200 141 GB", "cuda", 141 * 10**9, 0.7 * 989e12, 0.8 * 4.8e12, 5e10, 8.5e11, f"H200 {_NVIDIA}"
    ),
    "a100": Machine(
        "NVIDIA A100 SXM 80 GB", "cuda", 80 * 10**9, 0.7 * 312e12, 0.8 * 2.04e12, 2.2e10, 3.6e11, f"A100 {_NVIDIA}"
    ),
}


def machine(name: str) -> Machine:
    """Return a machine by name; ``"cpu"`` is this processor, measured now with torch's present threads.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    name = str(name).lower()
    if name == "cpu":
        return _this_processor()
    if name not in MACHINES:
        raise InputError(f"device {name!r} is not in the table; plan for one of {', '.join([*MACHINES, 'cpu'])}")
    return MACHINES[name]


def _this_processor() -> Machine:
    x, w = torch.randn(128, 2048), torch.randn(2048, 2048)
    flops = 2 * x.shape[0] * w.numel() / _seconds(lambda: x @ w)
    large = torch.empty(1 << 25)
    bandwidth = 2 * large.nbytes / _seconds(lambda: large.clone())
    codes, table = torch.randint(0, 16, (1 << 20,)), torch.randn(16)
    decode = codes.numel() / _seconds(lambda: table[codes])
    threads = torch.get_num_threads()
    source = f"measured now, {threads} thread{'s' if threads > 1 else ''}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
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

"""Seconds of a plan: what sweeps really multiply, at rates that are a data sheet's or measured on the spot."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.operators import detach
from detjac_lanczos.runs import machines, plan
from detjac_lanczos.runs.job_seconds import Pace, capture_seconds
from detjac_lanczos.runs.machines import Machine, machine
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = 16
ONE = Machine("one of everything a second", "cpu", 1, 1.0, 1.0, 1.0, 1.0, "")


def deep(name: str) -> Any:
    """Return a tiny model of many blocks: the last one, of which a sweep meets a part, is a small share."""
    model = (DENSE | MOE)[name](torch.float64)
    config = model.config
    config.num_hidden_layers, config.layer_types = BLOCKS, None
    return type(model)(config).double()


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Mixtral"])
def test_a_sweep_multiplies_what_is_counted(name: str) -> None:
    model, n, width = deep(name), 40, 3
    family = family_of(model)
    pace = Pace.of(model, family, family.shape(model, "gate"), 0, 0, packed=False)
    idle = SimpleNamespace(seconds_with=lambda rates: 0.0)
    counted = pace.seconds(ONE, idle, [n], width, 1)
    J = detach((model, None), input_ids=tiny_models.prompt_ids(n)[0]).jacobian("joint")
    with FlopCounterMode(display=False) as sweep:
        J.matmat(torch.ones(J.shape[1], width, dtype=torch.float64))
    assert (1 - 1.5 / BLOCKS) * counted <= sweep.get_total_flops() <= counted


def test_a_pass_reads_what_its_products_do_not_hide_and_decodes_what_is_packed() -> None:
    """Of 3 passes with 5 seconds of coefficients each; weights on the device and those that stream are read at once."""
    schedule = SimpleNamespace(seconds_with=lambda rates: 5.0)

    def seconds(columns: float = 0.0, **what: float) -> float:
        pace = Pace(**({"weights": 0.0, "bytes": 0.0, "streamed": 0, "packed": 0.0, "mixing": 0} | what))
        return pace.seconds(ONE, schedule, [4, 2], columns, 3) - 15

    assert seconds(bytes=7.0) == seconds(streamed=7) == seconds(packed=7.0) == 21
    assert seconds(bytes=7.0, streamed=9, packed=2.0) == 33
    assert seconds(10.0, weights=3.0) == 2 * 3 * (4 + 2) * 10
    assert seconds(10.0, mixing=2) == 2 * 10 * (4 * 5 + 2 * 3)
    assert seconds(10.0, weights=3.0, bytes=7.0) == 360
    assert seconds(0.1, weights=3.0, bytes=7.0) == 21


def test_a_model_in_half_precision_is_read_in_half_the_bytes() -> None:
    model = DENSE["Llama"](torch.float32)
    family = family_of(model)
    inside = sum(p.nbytes for block in family.blocks_of(model) for p in block.parameters())
    pace = Pace.of(model, family, family.shape(model, "gate"), inside, 0, packed=True)
    used = [".v_proj.", ".o_proj.", ".up_proj.", ".down_proj."]
    met = sum(p.numel() for name, p in model.named_parameters() if any(part in name for part in used))
    assert pace.weights == pace.packed == met
    assert pace.bytes == pytest.approx(4 * met)


def test_a_capture_is_two_forward_passes() -> None:
    model = DENSE["Llama"](torch.float32)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert capture_seconds(model, {"float32": 4 * count}, 0, 1, ONE) == 2 * 4 * count
    assert capture_seconds(model, {"float32": 4 * count}, 0, 5, ONE) == 2 * 2 * 5 * count
    assert capture_seconds(model, {"float32": 4 * count}, 3, 1, ONE) == 2 * (4 * count + 3)


def test_packed_weights_cost_their_decoding_in_every_pass() -> None:
    found = plan("smollm2", 8, device="h100", quantization="nf4")
    blocks = 30 * 576 * (576 + 192 + 2 * 1536)
    assert found.joint.seconds > found.joint.passes * blocks / found.device.decode


@pytest.mark.parametrize(
    ("name", "bandwidth", "half", "full"),
    [("h100", 3.35e12, 989e12, 67e12), ("h200", 4.8e12, 989e12, 67e12), ("a100", 2.04e12, 312e12, 19.5e12)],
)
def test_rates_are_shares_of_the_data_sheet(name: str, bandwidth: float, half: float, full: float) -> None:
    for dtype, rate in ((torch.bfloat16, half), (torch.float16, half), (torch.float32, full), (torch.float64, full)):
        found = machine(name, dtype)
        assert found.flops == pytest.approx(0.7 * rate)
        assert found.bandwidth == pytest.approx(0.8 * bandwidth)
        assert found.rates.flops == found.flops and found.rates.bytes == found.link and found.rates.overlaps


def test_this_processor_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a second each: a product has two operations a weight and row, a copy reads and writes, a decoding looks up.

    Its memory is found where the system has no ``sysconf`` (Windows).
    """
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    monkeypatch.delattr(os, "sysconf", raising=False)
    monkeypatch.setattr(machines, "_seconds", lambda work: 1.0)
    found = machine("cpu", torch.float32)
    assert found.flops == 2 * 128 * 2048 * 2048
    assert found.bandwidth == 2 * 4 * (1 << 25)
    assert found.decode == 1 << 20
    if Path("/proc/meminfo").exists():
        total = Path("/proc/meminfo").read_text().split()[1]
        assert found.memory == int(total) * 1024 == pages


def test_the_shortest_of_a_few_runs_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(machines, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    taken = iter([1.0, 9.0, 4.0, 3.0, 5.0, 7.0])

    def work() -> None:
        clock[0] += next(taken)

    assert machines._seconds(work) == 3.0


@pytest.mark.parametrize("settings", [lambda: torch.autocast("cpu"), lambda: torch.device("meta")])
def test_this_processor_is_measured_apart_from_the_callers_settings(
    settings: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.Tensor] = []

    def seconds(work: Callable[[], torch.Tensor]) -> float:
        made.append(work())
        return 1.0

    monkeypatch.setattr(machines, "_seconds", seconds)
    before = torch.get_rng_state()
    with settings():
        machine("cpu", torch.float32)
    assert {(x.device.type, x.dtype) for x in made} == {("cpu", torch.float32)}
    assert torch.equal(torch.get_rng_state(), before)

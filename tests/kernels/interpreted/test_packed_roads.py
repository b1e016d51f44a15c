import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import get_4bit_type

from detjac_kernels import choice, four_bit, mixing_roads, packed_roads
from detjac_kernels.choice import ChoiceTable, Road
from detjac_kernels.device import trial
from detjac_kernels.four_bit import Packed4
from tests.kernels.packed import random_packed, relative

EXACT = 1e-6


def nf4(f: int, d: int, *, nested: bool) -> Packed4:
    made = random_packed(f, d, nested=nested)
    return Packed4(made.codes, made.absmax, get_4bit_type("nf4", device="cpu"), made.block, made.shape, made.nested)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("favourite", ["dequantise", "bitsandbytes", "fused"])
def test_every_road_makes_the_same_product(favourite: str, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks are small enough for several; the timer favours one road after the other."""
    monkeypatch.setattr(packed_roads, "cached_bytes", lambda device: 4 * 64 * 130)
    packed = nf4(192, 128, nested=True)
    n, k = packed.shape[::-1] if transposed else packed.shape
    x = torch.randn(11, k)
    values = [torch.rand(k) + 0.5, torch.randn(11, n), torch.randn(n), torch.randn(11, n)]
    around = dict(zip(("scale", "gate", "out_scale", "add"), values, strict=True))
    timed: list[Road] = []

    def timer(road: Road) -> float:
        timed.append(road)
        return float(len(timed) != names.index(favourite) + 1)

    names = ["dequantise", "fused"] if transposed else ["dequantise", "bitsandbytes", "fused"]
    if favourite not in names:
        return
    table = ChoiceTable(timer)
    monkeypatch.setattr(packed_roads, "TABLE", table)
    got = packed_roads.product(x, packed, transposed, **around)
    assert list(table.choices().values()) == [favourite]
    assert list(*table.seconds().values()) == names
    twin = four_bit.packed_linear_transposed if transposed else four_bit.packed_linear
    expected = twin(x, packed, **around)
    assert relative(got, expected) <= EXACT


def test_parts_cover_the_outputs_in_bounded_pieces() -> None:
    packed = random_packed(200, 128, nested=False)
    assert list(packed_roads.parts(packed, False, 64 * 128)) == [
        range(0, 64),
        range(64, 128),
        range(128, 192),
        range(192, 200),
    ]
    assert list(packed_roads.parts(packed, True, 1)) == [range(0, 64), range(64, 128)]


def test_tables_of_its_own_are_not_for_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is looked at once, not once for each matrix that has it: the host waits for its device then."""
    packed = nf4(64, 64, nested=False)
    assert packed_roads.kind_of(packed) == "nf4"
    assert packed_roads.kind_of(random_packed(64, 64, nested=False)) is None
    nested = random_packed(64, 64, nested=True, inner=128)
    assert packed_roads.kind_of(replace(nested, table=packed.table)) is None
    monkeypatch.setattr(torch, "allclose", None)
    assert packed_roads.kind_of(replace(packed)) == "nf4"


def test_classes_keep_what_differs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(17, 128)
    made = {
        packed_roads.shape_class(rows, packed, transposed)
        for rows in (x, x[:16], x.bfloat16())
        for packed in (random_packed(64, 128, nested=False), random_packed(64, 128, nested=True))
        for transposed in (False, True)
    }
    assert len(made) == 12
    for packed in (random_packed(64, 256, nested=False), random_packed(128, 128, nested=False)):
        made.add(packed_roads.shape_class(x, packed, False))
    made.add(packed_roads.shape_class(x, random_packed(64, 128, nested=False, block=128), False))
    assert len(made) == 15
    for setting in ("tf32", "ieee"):  # the latter is what there is where nothing is set
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=setting))
        made.add(packed_roads.shape_class(x, random_packed(64, 128, nested=False), False))
    assert len(made) == 16
    packed = random_packed(64, 128, nested=False)
    assert packed_roads.shape_class(x, packed, False) == packed_roads.shape_class(x[:20], packed, False)


def test_on_a_processor_the_twin_computes() -> None:
    assert not packed_roads.takes(torch.randn(2, 128), random_packed(64, 128, nested=False))


class OnDevice(torch.Tensor):
    """A tensor of a processor that says it lies on a CUDA device."""

    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("road", ["fused", "dequantise"])
def test_on_a_device_the_public_product_takes_the_chosen_road(
    road: str, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ChoiceTable(lambda work: 1.0)
    monkeypatch.setattr(packed_roads, "TABLE", table)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    packed = random_packed(128, 192, nested=True)
    n, k = packed.shape[::-1] if transposed else packed.shape
    x = torch.randn(9, k)
    around = {
        "scale": torch.rand(k) + 0.5,
        "gate": torch.randn(9, n),
        "out_scale": torch.randn(n),
        "add": torch.randn(9, n),
    }
    key = packed_roads.shape_class(x, packed, transposed)
    table.replay({key: road})
    ran: list[str] = []
    for name in ("fused", "dequantised"):
        work = getattr(packed_roads, name)
        monkeypatch.setattr(packed_roads, name, lambda *a, work=work, name=name, **b: ran.append(name) or work(*a, **b))
    product = packed_roads.packed_linear_transposed if transposed else packed_roads.packed_linear
    expected = product(x, packed, **around)
    assert ran == []
    got = product(x.as_subclass(OnDevice), packed, **around)
    assert ran == ["fused" if road == "fused" else "dequantised"]
    assert relative(got, expected) <= EXACT


def test_on_a_device_the_twin_multiplies_what_the_kernel_does_not_take() -> None:
    packed = random_packed(64, 96, nested=False)  # blocks straddle rows
    x = torch.randn(3, 96)
    assert torch.equal(packed_roads.packed_linear(x.as_subclass(OnDevice), packed), four_bit.packed_linear(x, packed))


@pytest.mark.parametrize("wrong", [RuntimeError("Failed to find C compiler.\nSpecify"), None], ids=["driver", "import"])
def test_on_a_device_where_triton_is_and_does_not_run_the_twins_serve(
    wrong: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried once, and why it does not run is said where it is said of any road."""
    monkeypatch.setattr(choice, "_trials", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tried: list[object] = []

    def refuse(*given: object) -> None:
        tried.append(given)
        assert wrong is not None
        raise wrong

    if wrong is None:
        monkeypatch.setitem(sys.modules, "detjac_kernels.device.trial", None)
    else:
        monkeypatch.setattr(trial, "launch", refuse)
    packed, x, p = random_packed(64, 128, nested=False), torch.randn(3, 128), torch.rand(1, 3, 3)
    values = x[None].as_subclass(OnDevice)
    for _ in range(2):
        assert torch.equal(
            packed_roads.packed_linear(x.as_subclass(OnDevice), packed), four_bit.packed_linear(x, packed)
        )
        assert torch.equal(mixing_roads.mix(p, values), mixing_roads.mix(p, x[None]))
    why = "ModuleNotFoundError: import of" if wrong is None else "RuntimeError: Failed to find C compiler."
    assert ChoiceTable(lambda road: 1.0).failures()["cpu"]["triton"].startswith(why)
    assert len(tried) == (wrong is not None)


@pytest.mark.parametrize("what", ["memory is full", "a graph is captured"])
def test_what_holds_for_now_says_nothing_of_triton(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(choice, "_trials", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    x = torch.randn(3, 128).as_subclass(OnDevice)
    error = torch.OutOfMemoryError("full") if what == "memory is full" else RuntimeError("operation not permitted")
    with monkeypatch.context() as now:
        now.setattr(trial, "launch", lambda *_: (_ for _ in ()).throw(error))
        now.setattr(torch.cuda, "is_current_stream_capturing", lambda: what == "a graph is captured")
        assert not choice.triton_runs(x)
    assert choice.triton_runs(x)
    assert ChoiceTable(lambda road: 1.0).failures() == {}

"""The device bench where kernels fail or fall back: each failure costs its own row, and no time gets a wrong name."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from bench.gpu import job, neighbours, verify
from bench.gpu.sizes import sizes
from detjac_kernels import packed_roads
from detjac_kernels.device import captures, mixing
from tests.kernels.packed import random_packed


def fails(*_: Any, **__: Any) -> Any:
    raise OutOfResources(300_000, 232_448, "shared memory")


def test_a_kernel_that_does_not_fit_fails_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "mix_rebuilt", fails)
    monkeypatch.setattr(captures, "captured_gate", fails)
    monkeypatch.setattr(verify, "_packed", lambda *_: [])
    rows = verify.verify(replace(sizes(True), positions=8), (torch.float32,))
    failed = {row["what"].split(",")[0] for row in rows if not row["passed"]}
    assert failed == {"mix_rebuilt", "gate"}
    assert {row["what"].split(",")[0] for row in rows} - failed == {
        "mix_rebuilt_transposed",
        "mix",
        "mix_transposed",
        "norm",
    }
    assert all("OutOfResources" in row["errors"]["difference"] for row in rows if not row["passed"])


def test_stored_mixing_is_timed_as_the_library_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, dict[str, Any]]] = []
    for name in ("mix", "mix_transposed"):
        monkeypatch.setattr(mixing, name, lambda *tensors, **options: asked.append((len(tensors), options)))
    for what, kernel, *_ in neighbours._mixing(replace(sizes(True), positions=8)):
        if what.endswith("P stored"):
            kernel()
    assert asked == [(2, {})] * 2


class Product:
    """An operator that is one 4-bit matrix, served by the roads of a device."""

    shape, dtype = (64, 64), torch.float32

    def __init__(self) -> None:
        self.packed = random_packed(64, 64, nested=True)

    def matmat(self, x: Tensor) -> Tensor:
        return packed_roads.product(x.t().contiguous(), self.packed, False).t()

    def rmatmat(self, y: Tensor) -> Tensor:
        return packed_roads.product(y.t().contiguous(), self.packed, True).t()


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Product:
    table = packed_roads.ChoiceTable(lambda road: 1.0)
    monkeypatch.setattr(packed_roads, "TABLE", table)
    monkeypatch.setattr(packed_roads, "choices", table.choices)
    monkeypatch.setattr(packed_roads, "replay", table.replay)
    monkeypatch.setattr(packed_roads, "cached_bytes", lambda device: 4)
    monkeypatch.setattr(job, "SWEEPS", 2)
    monkeypatch.setattr(packed_roads, "parts", counted := Counted(packed_roads.parts))
    made = Product()
    made.cut = counted.asked  # type: ignore[attr-defined]
    job.sweeps(made, 1, sizes(True))
    return made


class Counted:
    """Remembers how many weights a part may have."""

    def __init__(self, work: Any) -> None:
        self.work, self.asked = work, []

    def __call__(self, packed: Any, transposed: bool, values: int) -> Any:
        self.asked.append(values)
        return self.work(packed, transposed, values)


@pytest.mark.parametrize("name", job.FORCED)
def test_forced_roads_serve_every_product(name: str, product: Any) -> None:
    before = packed_roads.choices()
    product.cut.clear()
    road, whole = job.FORCED[name]
    assert job._forced(road, whole, product, sizes(True)) > 0
    assert packed_roads.choices() == before
    assert set(product.cut) == ({1} if name == "cached parts" else {1 << 60} if whole else set())


def test_a_forced_road_that_falls_back_gets_no_time(product: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = packed_roads.choices()
    monkeypatch.setattr(packed_roads, "fused", fails)
    with pytest.raises(RuntimeError, match=r"did not serve every product.*OutOfResources"):
        job._forced("fused", False, product, sizes(True))
    assert packed_roads.choices() == before

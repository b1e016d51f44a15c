import ast
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CalledProcessError

import pytest
import torch
from torch import Tensor
from triton import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from detjac_kernels import choice
from detjac_kernels.choice import ChoiceTable, Road

VALUE = torch.arange(6.0) + 1


class FakeTimer:
    """Seconds by the name of a road, and how often each was asked for."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.asked = seconds, []

    def __call__(self, road: Road) -> float:
        road()
        self.asked.append(road.name)
        return self.seconds[road.name]


class FakeRoad:
    def __init__(self, name: str, value: Tensor | Exception = VALUE) -> None:
        self.name, self.value, self.runs = name, value, 0

    def __call__(self) -> Tensor:
        self.runs += 1
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def roads(*made: FakeRoad) -> dict[str, FakeRoad]:
    return {road.name: road for road in made}


def test_the_fastest_road_is_measured_once_and_then_taken() -> None:
    timer = FakeTimer({"slow": 2.0, "fast": 1.0})
    table = ChoiceTable(timer)
    made = roads(FakeRoad("slow"), FakeRoad("fast"))
    assert torch.equal(table.run("a", made, 1e-6), VALUE)
    assert table.choices() == {"a": "fast"}
    assert table.seconds() == {"a": {"slow": 2.0, "fast": 1.0}}
    ran = made["slow"].runs
    table.run("a", made, 1e-6)
    assert made["slow"].runs == ran and timer.asked == ["slow", "fast"]


NODE = ast.parse("x")
WRONG = {
    "does not fit": (OutOfResources(300_000, 232_448, "shared memory"), "OutOfResources: out of resource: shared"),
    "does not compile": (CompilationError("x = 1", NODE, "no such type"), "CompilationError"),
    "no assembler": (PTXASError("bad code"), "PTXASError: PTXAS error: bad code"),
    "no C compiler": (CalledProcessError(1, "gcc"), "CalledProcessError"),
    "fails": (RuntimeError("invalid configuration\nat line 3"), "RuntimeError: invalid configuration"),
    "disagrees": (VALUE * 1.1, "differs by 1.0e-01, more than 1e-03"),
    "nan": (VALUE * float("nan"), "differs by nan"),
}


@pytest.mark.parametrize(("wrong", "why"), WRONG.values(), ids=WRONG)
def test_a_road_that_fails_or_disagrees_is_left_out_and_it_is_said_why(wrong: Tensor | Exception, why: str) -> None:
    table = ChoiceTable(FakeTimer({"first": 2.0, "bad": 0.1}))
    table.run("a", roads(FakeRoad("first"), FakeRoad("bad", wrong)), 1e-3)
    assert table.choices() == {"a": "first"}
    assert table.seconds() == {"a": {"first": 2.0}}
    assert table.failures()["a"]["bad"].startswith(why)


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("full"), RuntimeError("Triton Error [CUDA]: out of memory")])
def test_memory_that_is_full_now_leaves_the_choice_open(full: Exception) -> None:
    table = ChoiceTable(FakeTimer({"first": 2.0, "second": 1.0}))
    made = roads(FakeRoad("first"), FakeRoad("second", full))
    for turn, tried in enumerate([1, 2, 2, 3], start=1):
        assert torch.equal(table.run("a", made, 1e-3), VALUE)
        assert (made["second"].runs, table.choices()) == (tried, {}), turn
    made["second"].value = VALUE
    for _ in range(4):
        table.run("a", made, 1e-3)
    assert (table.choices(), table.failures()) == ({"a": "second"}, {})


def test_a_recorded_road_that_fails_loses_and_the_rest_is_measured() -> None:
    table = ChoiceTable(FakeTimer({"first": 3.0, "second": 1.0, "third": 2.0}))
    table.replay({"a": "second"})
    made = roads(FakeRoad("first"), FakeRoad("second", WRONG["does not fit"][0]), FakeRoad("third"))
    assert torch.equal(table.run("a", made, 1e-3), VALUE)
    assert "OutOfResources" in table.failures()["a"]["second"]
    table.run("a", made, 1e-3)
    assert table.choices() == {"a": "third"}


def test_errors_of_the_first_road_and_full_memory_are_the_callers() -> None:
    table = ChoiceTable(FakeTimer({}))
    with pytest.raises(ValueError, match="shapes"):
        table.run("a", roads(FakeRoad("first", ValueError("shapes")), FakeRoad("second")), 1e-3)
    table.replay({"a": "second"})
    with pytest.raises(torch.OutOfMemoryError):
        table.run("a", roads(FakeRoad("first"), FakeRoad("second", torch.OutOfMemoryError("full"))), 1e-3)
    assert table.choices() == {"a": "second"}


def test_roads_are_timed_on_the_device_of_their_product(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[Tensor] = []

    @contextmanager
    def entered(tensor: Tensor) -> Iterator[None]:
        inside.append(tensor)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "device_of", entered)
    found = []

    def timer(road: Road) -> float:
        found.append(inside[-1])
        return 1.0

    ChoiceTable(timer).run("a", roads(FakeRoad("first"), FakeRoad("second")), 1e-3)
    assert len(found) == 2 and all(tensor is VALUE for tensor in found)


def test_a_recorded_table_is_not_measured_again() -> None:
    timer = FakeTimer({"first": 1.0, "second": 2.0})
    table = ChoiceTable(timer)
    table.replay({"a": "second", "b": "elsewhere"})
    made = roads(FakeRoad("first"), FakeRoad("second"))
    table.run("a", made, 1e-3)
    assert (made["first"].runs, timer.asked) == (0, [])
    table.run("b", made, 1e-3)
    assert table.choices() == {"a": "second", "b": "first"}


def test_nothing_is_measured_where_it_must_not_be() -> None:
    timer = FakeTimer({"first": 2.0, "second": 1.0})
    table = ChoiceTable(timer)
    made = roads(FakeRoad("first"), FakeRoad("second"))
    table.run("a", made, 1e-3, measure=False)
    table.run("b", roads(FakeRoad("only")), 1e-3)
    assert (table.choices(), timer.asked, made["first"].runs) == ({}, [], 1)


def test_every_number_of_two_products_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_PIECE", 4)
    other = VALUE.clone()
    other[-1] += 1
    table = ChoiceTable(FakeTimer({"first": 2.0, "other": 1.0}))
    table.run("a", roads(FakeRoad("first"), FakeRoad("other", other)), 0.1)
    assert table.failures()["a"]["other"] == "differs by 1.0e-01, more than 1e-01"
    table.run("b", roads(FakeRoad("first"), FakeRoad("other", other)), 0.11)
    assert table.choices() == {"a": "first", "b": "other"}


def test_a_product_that_is_zero_is_compared_too() -> None:
    table = ChoiceTable(FakeTimer({"first": 2.0, "other": 1.0}))
    for key, found in (("same", torch.zeros(6)), ("off", torch.full((6,), 1e-2))):
        table.run(key, roads(FakeRoad("first", torch.zeros(6)), FakeRoad("other", found)), 1e-4)
    assert table.choices() == {"same": "other", "off": "first"}


def test_a_road_takes_the_middle_of_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds between events, and memory that no cache holds written before each."""
    taken, written = iter([9.0, 2.0, 7.0, 1.0, 3.0]), []

    class Event:
        def __init__(self, **_: object) -> None: ...

        def record(self) -> None: ...

        synchronize = record

        def elapsed_time(self, _: object) -> float:
            return next(taken)

    class Cold:
        def zero_(self) -> None:
            written.append(None)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Cold())
    road = FakeRoad("road")
    assert choice.seconds_on_device(road) == pytest.approx(3e-3)
    assert road.runs == len(written) == choice.REPEATS

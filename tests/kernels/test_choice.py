import pytest
import torch
from torch import Tensor

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
    def __init__(self, name: str, value: Tensor | None = VALUE) -> None:
        self.name, self.value, self.runs = name, value, 0

    def __call__(self) -> Tensor:
        self.runs += 1
        if self.value is None:
            raise RuntimeError("out of resources")
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


@pytest.mark.parametrize("wrong", [None, VALUE * 1.1, VALUE * float("nan")], ids=["fails", "disagrees", "nan"])
def test_a_road_that_fails_or_disagrees_is_left_out(wrong: Tensor | None) -> None:
    table = ChoiceTable(FakeTimer({"first": 2.0, "bad": 0.1}))
    table.run("a", roads(FakeRoad("first"), FakeRoad("bad", wrong)), 1e-3)
    assert table.choices() == {"a": "first"}
    assert table.seconds() == {"a": {"first": 2.0}}


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

from threading import Event, Thread

import pytest

from detjac_kernels import mixing_roads, packed_roads
from detjac_kernels.choice import ChoiceTable
from detjac_lanczos.errors import InputError
from detjac_lanczos.models import kernel_choices as record
from detjac_lanczos.runs.schema import RECORD, first_fault


def test_choices_of_a_device_are_recorded_and_replayed_and_those_not_made_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (packed_roads, mixing_roads):
        table = ChoiceTable(lambda road: 1.0)
        monkeypatch.setattr(module, "choices", table.choices)
        monkeypatch.setattr(module, "replay", table.replay)
        monkeypatch.setattr(module, "forget", table.forget)
    assert set(record.kernel_choices()) == {"gemm"}
    with record.kernel_choices_in_force({"solver": {"block": 4}, "packed": {"H100, xWt": "fused"}}):
        made = record.kernel_choices()
        assert (made["packed"], "mixing" in made) == ({"H100, xWt": "fused"}, False)
        with record.kernel_choices_in_force({"packed": {"H100, xWt": "dequantise"}, "mixing": {"H100, mix": "kernel"}}):
            assert record.kernel_choices()["packed"] == {"H100, xWt": "dequantise"}
            assert record.kernel_choices()["mixing"] == {"H100, mix": "kernel"}
        assert record.kernel_choices() == made
    assert set(record.kernel_choices()) == {"gemm"}
    assert first_fault({"solver": {}, **made}, RECORD["choices"]) is None
    assert first_fault({"solver": {}, **made, "packed": {"H100, xWt": 3}}, RECORD["choices"]) is not None


def test_threads_that_replay_choices_take_turns() -> None:
    before, order = record.kernel_choices(), []
    inside, let_go = Event(), Event()

    def first() -> None:
        with record.kernel_choices_in_force({"gemm": {"a class": "default"}}):
            inside.set()
            let_go.wait()
            order.append(record.kernel_choices()["gemm"]["a class"])

    def second() -> None:
        with record.kernel_choices_in_force({"gemm": {"a class": "onednn"}}):
            order.append(record.kernel_choices()["gemm"]["a class"])

    threads = [Thread(target=first), Thread(target=second)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    threads[1].join(0.2)
    let_go.set()
    for thread in threads:
        thread.join()
    assert order == ["default", "onednn"]
    assert record.kernel_choices() == before


def test_choices_that_are_none_leave_nothing_in_force() -> None:
    before = record.kernel_choices()
    choices = {"gemm": {"a class": "onednn"}, "packed": "fused"}
    with pytest.raises(InputError, match="choices are those of an earlier"), record.kernel_choices_in_force(choices):
        pass
    assert record.kernel_choices() == before


def test_roads_that_no_table_has_are_not_recorded_again() -> None:
    """Those of a file that was tampered with, or of another version."""
    given: dict[str, dict[str, str]] = {
        "gemm": {"a class": "parts"},
        "packed": {"a class": "fused", "another": "dequantise", "a third": "bitsandbytes"},
        "mixing": {"a class": "kernel", "another": "twin"},
    }
    before = record.kernel_choices()
    with record.kernel_choices_in_force({name: table | {"forged": "made up"} for name, table in given.items()}):
        assert record.kernel_choices() == {name: before.get(name, {}) | table for name, table in given.items()}

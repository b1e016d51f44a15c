import pytest

from detjac_kernels import mixing_roads, packed_roads
from detjac_kernels.choice import ChoiceTable
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
    record.replay_kernel_choices({"solver": {"block": 4}, "packed": {"H100, xWt": "fused"}})
    made = record.kernel_choices()
    assert (made["packed"], "mixing" in made) == ({"H100, xWt": "fused"}, False)
    with record.kernel_choices_in_force({"packed": {"H100, xWt": "dequantise"}, "mixing": {"H100, mix": "kernel"}}):
        assert record.kernel_choices()["packed"] == {"H100, xWt": "dequantise"}
        assert record.kernel_choices()["mixing"] == {"H100, mix": "kernel"}
    assert record.kernel_choices() == made
    assert first_fault({"solver": {}, **made}, RECORD["choices"]) is None
    assert first_fault({"solver": {}, **made, "packed": {"H100, xWt": 3}}, RECORD["choices"]) is not None

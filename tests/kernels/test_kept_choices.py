"""Choices that outlive a process: what is kept, what is ignored, and what has precedence."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detjac_kernels import kept_choices
from detjac_kernels.choice import ChoiceTable
from detjac_kernels.kept_choices import Kept, KeptChoices
from tests.kernels.test_choice import VALUE, WRONG, FakeRoad, FakeTimer, roads

MACHINE = {"device": "H100", "capability": "9.0", "torch": "2.13.0", "triton": "3.9.0"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roads" / "packed-H100.json"


def measured(path: Path, machine: dict[str, str] = MACHINE, recorded: dict[str, str] | None = None) -> Any:
    """Return the table of a new process after one product, its timer and its roads."""
    timer, made = FakeTimer({"slow": 2.0, "fast": 1.0}), roads(FakeRoad("slow"), FakeRoad("fast"))
    table = ChoiceTable(timer)
    table.replay(recorded or {})
    assert torch.equal(table.run("a", made, 1e-3, kept=KeptChoices(path, machine)), VALUE)
    return table, timer, made


def test_a_second_process_takes_what_the_first_measured(path: Path) -> None:
    measured(path)
    table, timer, made = measured(path)
    assert (timer.asked, made["slow"].runs, made["fast"].runs) == ([], 0, 1)
    assert table.choices() == {"a": "fast"}
    assert table.seconds() == {"a": {"slow": 2.0, "fast": 1.0}}
    assert [file.suffix for file in path.parent.iterdir() if file.suffix != ".lock"] == [".json"]


def test_a_recorded_choice_has_precedence_and_is_not_kept(path: Path) -> None:
    measured(path)
    before = path.read_text()
    table, _, made = measured(path, recorded={"a": "slow"})
    assert (table.choices(), made["fast"].runs, path.read_text()) == ({"a": "slow"}, 0, before)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("H100", "H200"),
        lambda text: text.replace('"fast",', "null,").replace("choices", "chosen"),
        lambda text: text.replace("1.0", '"soon"'),
        lambda text: text.replace("1.0", str(10**400)),
        lambda text: "[" * 100_000,
        lambda text: text.replace('"road": "fast"', '"road": "a road of another version"'),
    ],
    ids=["cut", "another kind", "another device", "no choices", "no numbers", "no float", "too deep", "no such road"],
)
def test_a_damaged_or_foreign_file_is_ignored_and_rewritten(damage: Any, path: Path) -> None:
    measured(path)
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    table, timer, _ = measured(path)
    assert (table.choices(), timer.asked) == ({"a": "fast"}, ["slow", "fast"])
    assert path.read_text() == whole


def test_what_another_process_kept_meanwhile_stays(path: Path) -> None:
    mine, other = KeptChoices(path, MACHINE), KeptChoices(path, MACHINE)
    other.add("b", Kept("fused", {"fused": 1.0}))
    mine.add("a", Kept("fast", {"fast": 1.0}))
    assert set(json.loads(path.read_text())["choices"]) == {"a", "b"}


def test_a_kept_road_that_fails_now_is_measured_again(path: Path) -> None:
    measured(path)
    table, made = (
        ChoiceTable(FakeTimer({"slow": 2.0})),
        roads(FakeRoad("slow"), FakeRoad("fast", WRONG["no assembler"][0])),
    )
    kept = KeptChoices(path, MACHINE)
    for _ in range(2):
        assert torch.equal(table.run("a", made, 1e-3, kept=kept), VALUE)
    assert table.choices() == {"a": "slow"}


@pytest.mark.parametrize("wrong", [WRONG["no C compiler"][0], WRONG["nan"][0]], ids=["fails", "disagrees"])
def test_what_a_road_that_failed_lost_is_not_kept(wrong: Any, path: Path) -> None:
    made = roads(FakeRoad("slow"), FakeRoad("fast", wrong))
    table = ChoiceTable(FakeTimer({"slow": 2.0}))
    table.run("a", made, 1e-3, kept=KeptChoices(path, MACHINE))
    assert (table.choices(), path.exists()) == ({"a": "slow"}, False)
    table, _, _ = measured(path)
    assert table.choices() == {"a": "fast"}


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    table, _, _ = measured(path)
    assert table.choices() == {"a": "fast"}


def test_only_cuda_devices_keep_choices_each_kind_and_version_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = kept_choices.kept_choices.__wrapped__
    assert make("packed", torch.device("cpu")) is None
    monkeypatch.setattr(kept_choices, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = set()
    for device in ("NVIDIA H100 80GB HBM3", "NVIDIA A100"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=device: name)
        for version in ("2.13.0", "2.14.0"):
            monkeypatch.setattr(kept_choices, "import_module", lambda name, v=version: SimpleNamespace(__version__=v))
            found |= {make(table, torch.device("cuda", 0)).path for table in ("packed", "mixing")}
    assert len(found) == 8 and {path.parent for path in found} == {tmp_path / "detjac_lanczos" / "roads"}


def test_other_kernels_and_other_capabilities_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_choices, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    found = set()
    for capability in ((9, 0), (8, 0), (8, 9)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, pair=capability: pair)
        for sources in ("these kernels", "changed kernels"):
            monkeypatch.setattr(kept_choices, "_sources", lambda digest=sources: digest)
            found.add(kept_choices.kept_choices.__wrapped__("packed", torch.device("cuda", 0)).path)
    assert len(found) == 6


def test_a_file_that_cannot_be_put_in_its_place_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    KeptChoices(path, MACHINE).add("a", Kept("fast", {"fast": 1.0}))
    assert not [file for file in path.parent.iterdir() if file.suffix != ".lock"]


def test_kept_choices_may_be_read_by_those_whom_the_umask_lets(path: Path) -> None:
    before = os.umask(0o022)
    try:
        measured(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644

"""A run that is cut off goes on from its checkpoint: same numbers bit for bit, same work, and the time of it all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detjac_lanczos.errors import InputError
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.models.kernel_choices import kernel_choices
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs import Run, analyze, checkpoint, surveying, verify
from detjac_lanczos.solvers import SVDResult
from detjac_lanczos.solvers.journal import Journal
from tests.runs.conftest import assert_same
from tests.tiny_llama import PROMPT

RUNS: dict[str, dict[str, Any]] = {
    "lanczos": {"method": "lanczos"},
    "complete": {"method": "lanczos", "certify": "complete"},
    "energy": {"method": "lanczos", "k": None, "energy": 0.9},
    "dense": {"method": "dense"},
    "auto": {"method": "auto"},
    "survey": {"method": "shared_basis"},
    "polished": {"method": "shared_basis", "polish": 2},
}


class Cut(Exception):
    """The end of a process, as far as a run can tell."""


class Cutting:
    """A callback that ends a run after so many passes."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, _: object) -> None:
        self.left -= 1
        if not self.left:
            raise Cut


def made(tiny: LoadedModel, name: str, **more: Any) -> Run:
    return analyze(tiny, [PROMPT, "most of the bridge"], **({"k": 3} | RUNS[name] | more))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_cut_off_goes_on(name: str, tiny: LoadedModel, tmp_path: Path) -> None:
    """Cut off early, in the middle and at its last pass; a survey also in its polish."""
    passes: list[object] = []
    whole = made(tiny, name, callback=passes.append)
    for left in {1, len(passes) // 2 + 1, len(passes)}:
        folder = tmp_path / str(left)
        with pytest.raises(Cut):
            made(tiny, name, callback=Cutting(left), checkpoint=folder)
        assert_same(whole, made(tiny, name, checkpoint=folder))


def test_earlier_passes_are_not_made_again_and_their_time_is_told(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tiny, "polished", checkpoint=tmp_path)
    for passes in ("pass-*", "polish/*/pass-*"):
        assert list(tmp_path.glob(passes))
    sent: list[int] = []
    for name in ("matmat", "rmatmat"):
        usual = getattr(JacobianBatch, name)

        def counted(self: JacobianBatch, blocks: Any, usual: Any = usual) -> Any:
            sent.append(sum(block.shape[1] for _, block in blocks))
            return usual(self, blocks)

        monkeypatch.setattr(JacobianBatch, name, counted)
    again = made(tiny, "polished", checkpoint=tmp_path)
    assert_same(first, again)
    assert sum(sent) < first.work["columns"] / 2
    times = again.record["times"]
    assert times["solve"] >= again.work["seconds"]
    assert times["total"] == pytest.approx(sum(times.values()) - times["total"])
    assert verify(again, tiny).ok


def test_a_polish_of_other_tokens_or_other_vectors_begins_anew(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another processor or library rounds the survey otherwise; the survey's passes are kept."""
    made(tiny, "polished", checkpoint=tmp_path)
    more = {"polish": 3}
    assert_same(made(tiny, "polished", **more), made(tiny, "polished", checkpoint=tmp_path, **more))
    usual = surveying.svd_batch

    def rounded_otherwise(*given: Any, **options: Any) -> list[SVDResult]:
        return [replace(result, V=result.V.nextafter(result.V + 1)) for result in usual(*given, **options)]

    monkeypatch.setattr(surveying, "svd_batch", rounded_otherwise)
    again = made(tiny, "polished", checkpoint=tmp_path)
    assert_same(made(tiny, "polished"), again)
    assert len(list(tmp_path.glob("polish/*"))) == 3


def test_a_run_goes_on_with_the_kernels_that_it_began_with(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Cut):
        made(tiny, "lanczos", checkpoint=tmp_path, callback=Cutting(2))
    written = json.loads((tmp_path / "choices.json").read_text())
    assert written == kernel_choices()
    replayed: list[object] = []
    usual = checkpoint.kernel_choices_in_force
    monkeypatch.setattr(
        checkpoint, "kernel_choices_in_force", lambda recorded: replayed.append(recorded) or usual(recorded)
    )
    made(tiny, "lanczos", checkpoint=tmp_path)
    assert replayed == [written]
    for damaged in ("{", "[]", '{"gemm": "default"}'):
        (tmp_path / "choices.json").write_text(damaged)
        made(tiny, "lanczos", checkpoint=tmp_path)
    assert [recorded for recorded in replayed if recorded != written] == [{}, {}, {}]


@pytest.mark.parametrize("name", ["lanczos", "polished"])
def test_kernels_are_written_down_before_the_pass_that_chose_them(
    name: str, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: dict[str, dict[str, str]] = {"gemm": {}}
    monkeypatch.setattr(checkpoint, "kernel_choices", lambda: json.loads(json.dumps(choices)))
    for way in ("matmat", "rmatmat", "rmatmat_shared", "matmat_sum"):
        usual = getattr(JacobianBatch, way)

        def choosing(self: JacobianBatch, given: Any, usual: Any = usual) -> Any:
            choices["gemm"][f"shape {len(choices['gemm'])}"] = "default"
            return usual(self, given)

        monkeypatch.setattr(JacobianBatch, way, choosing)
    write, written = Journal.write, []

    def write_after_choices(self: Journal, *given: Any) -> None:
        written.append(json.loads((tmp_path / "choices.json").read_text()) == choices)
        write(self, *given)

    monkeypatch.setattr(Journal, "write", write_after_choices)
    made(tiny, name, checkpoint=tmp_path)
    assert written and all(written)


def test_a_checkpoint_of_something_else_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    made(tiny, "lanczos", checkpoint=tmp_path)
    with pytest.raises(InputError, match="another operator"):
        made(tiny, "lanczos", checkpoint=tmp_path, freeze="up")
    with pytest.raises(InputError, match="repeat its options"):
        made(tiny, "lanczos", checkpoint=tmp_path, seed=1)
    with pytest.raises(InputError, match="checkpoint = 5 names no folder"):
        analyze("no model is looked for", PROMPT, checkpoint=5)  # type: ignore[arg-type]

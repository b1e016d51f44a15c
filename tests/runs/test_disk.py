"""A run folder is whole or absent, and reads back as it was written."""

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detjac_lanczos import whole_file
from detjac_lanczos.errors import InputError, RunFileError
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.runs import Run, disk, folder, load_run, verify
from detjac_lanczos.whole_file import new_work_name
from tests.runs.conftest import harm, tamper
from tests.unreadable import UNREADABLE, no_descriptor_left

pytestmark = pytest.mark.usefixtures("unpainted")


def _entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_round_trip_keeps_every_bit(run: Run, saved: Path) -> None:
    again = load_run(saved)
    assert again.record == run.record
    assert again.vectors.keys() == run.vectors.keys()
    for name, value in run.vectors.items():
        assert again.vectors[name].dtype == value.dtype
        assert torch.equal(again.vectors[name], value)
    assert [token.certificate for token in again.tokens] == [token.certificate for token in run.tokens]
    assert [token.left[0].decoded for token in again.tokens] == [token.left[0].decoded for token in run.tokens]
    assert str(again) == str(run)
    assert again.reconstruction.relative_error == run.reconstruction.relative_error


def test_folder_holds_record_vectors_page_and_figures(saved: Path) -> None:
    assert _entries(saved) == ["figures", "report.html", "run.json", "vectors.safetensors"]
    figures = _entries(saved / "figures")
    assert figures
    assert {Path(name).suffix for name in figures} == {".png", ".svg"}
    assert _entries(saved.parent) == [saved.name]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["run.json", "vectors.safetensors"])
def test_truncated_file_is_a_clear_error(copy: Path, name: str, share: float) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunFileError, match=r"truncated or damaged") as caught:
        load_run(copy)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "vectors.safetensors"])
def test_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(RunFileError, match=name):
        load_run(copy)


@pytest.mark.parametrize(("error", "said"), UNREADABLE, ids=repr)
def test_a_run_that_cannot_be_read_now_is_not_called_damaged(
    copy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    readers = [(disk, "load_file")]
    if not isinstance(error, RuntimeError):
        readers.append((Path, "read_text"))
    for reader in readers:
        with monkeypatch.context() as now:
            now.setattr(*reader, fail)
            with pytest.raises(RunFileError, match=rf"^cannot read .*{said}") as caught:
                load_run(copy)
        assert "damaged" not in str(caught.value) and "again" not in str(caught.value)
    load_run(copy)


def test_vectors_that_are_no_file_are_not_called_missing(copy: Path) -> None:
    (copy / "vectors.safetensors").unlink()
    (copy / "vectors.safetensors").mkdir()
    with pytest.raises(RunFileError, match=r"cannot read .*vectors\.safetensors \(Is a directory\)"):
        load_run(copy)


@pytest.mark.parametrize("name", ["U.0.0", "x.0.2", "y.0"])
def test_a_missing_vector_is_missed_in_the_file_that_should_hold_it(copy: Path, name: str) -> None:
    tamper(copy, lambda vectors: vectors.pop(name))
    with pytest.raises(RunFileError, match=rf"vectors\.safetensors lacks {re.escape(name)}; make the run again"):
        load_run(copy)


COMPLEX = ("U.0.0", "x.0.2", "y.0", "reconstruction.detached.0", "probe")
"""Their real parts may be right: whoever takes that alone finds nothing wrong."""
OUTPUTS = ("y.0", "reconstruction.detached.0", "reconstruction.ordinary.0")
"""Of what is not finite there is no page and no figure."""


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        *(([f"{part}.0.0"], lambda _: torch.tensor(4.0), "lacks 4 triplets of token 0") for part in "USV"),
        *(([name], lambda x: x * (1 + 1j), rf"lacks a real {re.escape(name)}; make the run again") for name in COMPLEX),
        *(
            ([name], lambda y: y / 0, r"lacks a finite vector reconstruction\.\w+\.0 of the length of y\.0")
            for name in OUTPUTS
        ),
        *((OUTPUTS, lambda _, size=size: torch.ones(size), "lacks a finite vector") for size in ((1, 64), (0,))),
    ],
)
def test_vectors_that_no_run_has_are_told(copy: Path, names: Iterable[str], change: Any, words: str) -> None:
    tamper(copy, lambda vectors: vectors.update({name: change(vectors.get(name, torch.ones(2))) for name in names}))
    with pytest.raises(RunFileError, match=words):
        load_run(copy)


def test_parts_that_a_later_version_adds_are_left_alone(complete: Run, tiny: LoadedModel, tmp_path: Path) -> None:
    """To every object of the record: the format promises that they may."""

    def add(part: Any) -> Any:
        if isinstance(part, list):
            return [add(item) for item in part]
        # Names of the user, and what is compared as a whole, hold what they hold.
        return {name: add(item) for name, item in part.items()} | {"added": 1} if isinstance(part, dict) else part

    record = add(complete.record)
    for name in ("loading", "definition", "choices"):
        record[name] = complete.record[name]
    record["work"]["products"] = complete.record["work"]["products"]
    Run(complete.record, complete.vectors).save(tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    again = load_run(tmp_path / "out")
    assert again.predictions == complete.predictions and str(again) and again.page()
    assert [token.certificate for token in again.tokens] == [token.certificate for token in complete.tokens]
    assert verify(again, tiny).ok


def _drop(part: Any, name: Any) -> None:
    del part[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(kind="something else"), "was not written by detjac"),
        *((lambda r, form=form: r.update(format=form), "no format number") for form in ("1", 0, True)),
        (
            lambda r: r.update(format=99, versions={"detjac_lanczos": "7.5.0"}),
            r"format 99, written by detjac-lanczos 7\.5\.0.*upgrade",
        ),
        (lambda r: r.update(format=99, versions=3), "format 99, written by detjac-lanczos a newer version"),
        (lambda r: r.update(work=3), "work is 3, not an object"),
        (lambda r: r.update(times=None), "times is None, not an object"),
        (lambda r: r.update(tokens="x"), "tokens is 'x', not a list"),
        (lambda r: r["tokens"][0]["singular_values"].pop(), "lacks 3 triplets of token 0"),
        (lambda r: _drop(r["tokens"][2], "status"), r"lacks tokens\[2\]\.status"),
        (lambda r: _drop(r["tokens"][0], "floor"), r"lacks tokens\[0\]\.floor"),
        (lambda r: _drop(r["tokens"][0], "energy"), r"lacks tokens\[0\]\.energy"),
        (lambda r: _drop(r["options"], "delta"), r"lacks options\.delta"),
        (lambda r: _drop(r, "route"), "lacks route"),
        (lambda r: _drop(r["reconstructions"][0], "model_relative_error"), "lacks .*model_relative_error"),
        (lambda r: _drop(r["tokens"][0]["certificate"], "tol"), r"lacks tokens\[0\]\.certificate\.tol"),
        (lambda r: _drop(r["tokens"][1]["left"][0][3], "score"), r"lacks tokens\[1\]\.left\[0\]\[3\]\.score"),
        (lambda r: r["tokens"][1]["left"][0].__setitem__(3, None), r"tokens\[1\]\.left\[0\]\[3\] is None"),
        (lambda r: r["tokens"][1]["right"].pop(), "decodings for the 4 triplets of token 1"),
        (lambda r: r["tokens"][3].__setitem__("residuals", [0, 1, 2, 3]), r"residuals\[0\] is 0, not a list of two"),
        (lambda r: r["tokens"][3]["residuals"][1].pop(), r"tokens\[3\]\.residuals\[1\] is .*, not a list of two"),
        (lambda r: r["tokens"][3].__setitem__("index", True), r"tokens\[3\]\.index is True, not a whole number"),
        (lambda r: r["tokens"][3].__setitem__("index", -1), "token -1 of prompt 0, which is not there"),
        (lambda r: r["tokens"][3].__setitem__("index", 99), "token 99 of prompt 0, which is not there"),
        (lambda r: r["tokens"][3].__setitem__("prompt", 7), "token 3 of prompt 7, which is not there"),
        (lambda r: r["tokens"][3].__setitem__("prompt", -1), "token 3 of prompt -1, which is not there"),
        (lambda r: r["tokens"].append(r["tokens"][0]), "results of token 0 of prompt 0 2 times"),
        (lambda r: r["tokens"][3]["singular_values"].__setitem__(0, float("nan")), "is nan, not a finite number"),
        (lambda r: r["tokens"][3]["singular_values"].__setitem__(0, "63.9"), "is '63.9', not a finite number"),
        (lambda r: r["options"].__setitem__("threshold", 10**400), r"threshold is inf, not a finite"),
        (lambda r: r["tokens"][3].__setitem__("floor", -(10**400)), r"floor is -inf, not a finite"),
        (lambda r: r["tokens"][3]["work"].__setitem__("passes", 10**400), r"work\.passes is inf, not a whole"),
        (lambda r: r["options"].__setitem__("seed", 10**30), r"seed is 1e\+30, not a whole number"),
        (lambda r: r["options"].__setitem__("seed", -1), r"run\.json says options\.seed is -1, not from 0 to"),
        (lambda r: r["options"].__setitem__("seed", 2**32), r"seed is 4294967296, not from 0 to 2³² - 1; make"),
        (lambda r: r["tokens"][3]["stable_rank_interval"].pop(), "not a list of two"),
        (lambda r: r["tokens"][3].__setitem__("stable_rank", None), "stable rank or its interval of token 3"),
        (lambda r: r["tokens"][3].__setitem__("contribution", 4), r"contribution is 4, not an object"),
        (lambda r: r["tokens"][3]["work"].__setitem__("passes", 2.5), r"work\.passes is 2\.5"),
        (lambda r: r.__setitem__("freeze", "melt"), "freeze is 'melt', not gate or up or half"),
        (lambda r: r["options"].__setitem__("certify", "all"), r"certify is 'all', not triplets or complete"),
        (lambda r: r["work"].__setitem__("dense_row_sweeps", 0), "lacks prompts, tokens or work"),
        (lambda r: r["predictions"].pop(), "predictions of each"),
        (lambda r: r["predictions"][0].clear(), "predictions of prompt 0"),
        (lambda r: r["token_ids"][0].pop(), "tokens or predictions of prompt 0"),
        (lambda r: r["times"].__setitem__("load", "long"), r"times\.load is 'long'"),
        (lambda r: r["choices"]["gemm"].__setitem__("f32", 3), r"choices\.gemm\.f32 is 3"),
    ],
)
def test_damage_of_the_record_is_one_line_that_says_where(copy: Path, change: Any, words: str) -> None:
    harm(copy, change)
    with pytest.raises(RunFileError, match=words) as caught:
        load_run(copy)
    assert "\n" not in str(caught.value)


def test_no_part_of_the_record_can_be_lost_without_a_word(copy: Path, run: Run, tiny: LoadedModel) -> None:
    """Whatever is taken out: it is missed at once, or the table, the page and the verification do without it.

    The page and the verification, the dear ones, meet records that lack several parts at once. Of a table of products
    one line stands for all: it has one for each that this process has timed.
    """
    tables = {name: dict(list(table.items())[:2]) for name, table in run.record["choices"].items()}
    record = run.record | {"choices": tables}
    spared: list[tuple[Any, ...]] = []
    for path in _paths(record):
        _write_without(copy, record, [path])
        try:
            again = load_run(copy)
        except RunFileError:
            continue
        assert str(again), path
        spared.append(path)
    assert len(spared) >= 20
    for start in range(0, len(spared), 8):
        group = spared[start : start + 8]
        _write_without(copy, record, group)
        again = load_run(copy)
        assert again.page() and verify(again, tiny).claims, group


def _write_without(folder: Path, record: dict[str, Any], paths: Iterable[tuple[Any, ...]]) -> None:
    """Write a record that lacks some parts; one that lies in another of them is gone with it."""
    record = json.loads(json.dumps(record))
    for path in sorted(paths, key=len, reverse=True):
        part = record
        for name in path[:-1]:
            part = part[name]
        del part[path[-1]]
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def _paths(part: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every part, of lists the first item alone."""
    names = list(part) if isinstance(part, dict) else range(min(1, len(part))) if isinstance(part, list) else ()
    for name in names:
        yield (name,)
        yield from ((name, *rest) for rest in _paths(part[name]))


def test_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="no run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunFileError, match=r"holds no run\.json"):
        load_run(tmp_path)


def test_own_run_is_replaced(run: Run, copy: Path) -> None:
    (copy / "report.html").write_text("old", encoding="utf-8")
    run.save(copy)
    assert (copy / "report.html").read_text(encoding="utf-8") != "old"
    assert _entries(copy.parent) == [copy.name]


def test_foreign_files_are_never_deleted(run: Run, copy: Path, tmp_path: Path) -> None:
    (copy / "notes.txt").write_text("mine", encoding="utf-8")
    before = _entries(copy)
    with pytest.raises(InputError, match=r"notes\.txt"):
        run.save(copy)
    assert _entries(copy) == before

    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="no run of detjac"):
        run.save(other)
    assert _entries(other) == ["run.json"]


def test_a_file_in_the_way_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is a file"):
        run.save(tmp_path / "out")
    with pytest.raises(InputError, match="cannot write"):
        run.save(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("replaced", [False, True])
def test_no_other_place_is_advised_where_descriptors_have_run_out(run: Run, tmp_path: Path, *, replaced: bool) -> None:
    place = run.save(tmp_path / "out")
    if not replaced:
        shutil.rmtree(place)
    said = r"cannot write .*: too many files are open \(.*\); close some, or raise the limit"
    with pytest.raises(InputError, match=said), no_descriptor_left():
        run.save(place)
    with pytest.raises(InputError, match=said), no_descriptor_left():
        folder.write_whole(tmp_path / "page.html", "")
    assert _entries(tmp_path) == ["out"] * replaced
    assert run.save(place).is_dir()


def test_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    # The superuser may write anywhere but into the kernel's own tree.
    closed = tmp_path if os.geteuid() else Path("/proc")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        folder.check_output(closed / "out")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("stage", ["to_safetensors", "render_page", "_sync"])
@pytest.mark.parametrize("there", [True, False])
def test_interrupt_while_saving_leaves_the_folder_as_it_was(
    run: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, there: bool
) -> None:
    out = tmp_path / "deep" / "out"
    if there:
        shutil.copytree(saved, out)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder if stage == "_sync" else disk, stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.save(out)
    assert out.exists() == there
    if there:
        assert _entries(out.parent) == ["out"]
        assert load_run(out).record == run.record
    else:
        assert _entries(tmp_path) == []


def test_failed_exchange_puts_the_old_run_back(run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = Path.rename, []

    def fail_second(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(KeyboardInterrupt):
        run.save(copy)
    monkeypatch.undo()
    assert load_run(copy).record == run.record
    assert _entries(copy.parent) == [copy.name]


@pytest.mark.parametrize("when", ["before", "between", "while it is looked at"])
def test_of_two_that_save_at_once_the_last_one_has_its_way(
    run: Run, saved: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The other one is elsewhere in the same two renames: it has taken the run away, or put its own in its place."""
    rename, is_part, done = Path.rename, folder._is_part, []

    def renamed(self: Path, target: Path) -> Path:
        if self != copy or done:
            return rename(self, target)
        done.append(when)
        if when == "before":
            shutil.rmtree(copy)
        moved = rename(self, target)
        shutil.copytree(saved, copy)
        return moved

    def looked_at(entry: Path) -> bool:
        if not done:
            done.append(when)
            shutil.copytree(saved, copy.with_name("other"))
            shutil.rmtree(copy)
            rename(copy.with_name("other"), copy)
            return False
        return is_part(entry)

    monkeypatch.setattr(disk, "save_figures", lambda *_: [])
    if when == "while it is looked at":
        monkeypatch.setattr(folder, "_is_part", looked_at)
    else:
        monkeypatch.setattr(Path, "rename", renamed)
    run.save(copy)
    assert done and _entries(copy) == ["report.html", "run.json", "vectors.safetensors"]
    assert _entries(copy.parent) == [copy.name]


def test_what_is_put_in_the_place_of_a_run_meanwhile_is_not_deleted(
    run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == copy:
            copy.mkdir()
            (copy / "notes.txt").write_text("mine")
        return moved

    monkeypatch.setattr(disk, "save_figures", lambda *_: [])
    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(InputError, match=r"holds 'notes\.txt', which is not part of a run"):
        run.save(copy)
    assert _entries(copy) == ["notes.txt"]
    (before,) = (entry for entry in copy.parent.iterdir() if entry != copy)
    assert load_run(before).record == run.record


def test_what_a_killed_save_left_goes_once_a_new_run_stands(
    run: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its two renames, a save leaves the run that was there in a hidden folder, and nothing else."""
    monkeypatch.setattr(disk, "save_figures", lambda *_: [])
    monkeypatch.setattr(whole_file, "_STALE", -60.0)
    left = Path(shutil.copytree(saved, new_work_name(tmp_path, "out")))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "render_page", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.save(tmp_path / "out")
    assert load_run(left).record == run.record
    (left / "mine").write_text("mine")
    run.save(tmp_path / "out")
    assert (left / "mine").exists()
    (left / "mine").unlink()
    run.save(tmp_path / "out")
    assert _entries(tmp_path) == ["out"]


def test_what_a_killed_report_left_is_no_obstacle_and_goes(
    run: Run, copy: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(record: object, vectors: object, place: Path) -> None:
        (place / "spectra.svg").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_file, "_STALE", -60.0)
    monkeypatch.setattr(disk, "save_figures", lambda *_: [])
    run.save(mounted)
    for place in (copy, mounted):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(disk, "save_figures", killed)
            patch.setattr(whole_file, "_delete", lambda _: None)
            disk.draw_again(run.record, run.vectors, place)
        page = new_work_name(place, "report.html")
        page.mkdir()
        (page / "report.html").write_text("half")
        left = next(entry for entry in place.iterdir() if entry.name.startswith(".figures."))
        (left / "mine.svg").write_text("mine")
        with pytest.raises(InputError, match=rf"holds '{left.name}', which is not part of a run"):
            run.save(place)
        (left / "mine.svg").unlink()
        run.save(place)
        assert not left.exists()
        left.mkdir()
        disk.draw_again(run.record, run.vectors, place)
        assert not left.exists()


@pytest.mark.parametrize("name", [".out.detjac-notes", ".out.detjac-01234567"])
def test_a_hidden_folder_in_a_run_folder_is_not_deleted(saved: Path, tmp_path: Path, name: str) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "out"))
    (out / name).mkdir()
    with pytest.raises(InputError, match="which is not part of a run"):
        folder.check_output(out)


def test_report_is_one_file_written_whole(run: Run, tmp_path: Path) -> None:
    page = run.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert _entries(tmp_path) == ["page.html"]
    for place in ("nowhere", "page.html"):
        with pytest.raises(InputError, match="cannot write"):
            run.report(tmp_path / place / "page.html")


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "~nobody-of-this-name/x"])
def test_names_that_no_file_can_have_are_refused(run: Run, name: str, tmp_path: Path) -> None:
    place = name if name.startswith("~") else f"{tmp_path}/{name}"
    with pytest.raises(InputError, match="cannot write"):
        run.report(f"{place}.html")
    with pytest.raises(RunFileError, match="no run folder"):
        load_run(place)
    assert _entries(tmp_path) == []


def test_a_file_of_the_user_among_the_figures_is_not_deleted(run: Run, copy: Path) -> None:
    mine = copy / "figures" / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"holds 'figures/mine\.txt', which is not part of a run"):
        run.save(copy)
    assert mine.read_text() == "mine"
    mine.unlink()
    run.save(copy)


@pytest.mark.parametrize("name", ["report.html", "vectors.safetensors", "run.json", "figures/spectra.png", "figures"])
def test_what_has_the_name_of_a_part_and_another_kind_is_not_deleted(run: Run, copy: Path, name: str) -> None:
    mine = copy / name
    if name == "figures":
        shutil.rmtree(mine)
        mine.write_text("mine")
    else:
        mine.unlink()
        mine.mkdir()
        mine = mine / "mine"
        mine.write_text("mine")
    with pytest.raises(InputError, match=rf"holds '{name}', which is not part of a run"):
        run.save(copy)
    assert mine.read_text() == "mine"


def test_the_folder_a_process_works_in_is_not_replaced(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    for inside in (tmp_path / "here", tmp_path / "here" / "below"):
        monkeypatch.chdir(inside)
        with pytest.raises(InputError, match="is where this process works"):
            run.save(tmp_path / "here")
    run.save(tmp_path / "here" / "below" / "run")


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that, like a mount point, cannot be renamed, nor what lies beside it be moved into it."""
    mount, rename = tmp_path / "mount", Path.rename
    mount.mkdir()

    def renamed(self: Path, target: Path) -> Path:
        if mount in (self, target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if self.is_relative_to(mount) != Path(target).is_relative_to(mount):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mount)
    return mount


def test_a_mount_bound_from_the_same_file_system_is_known(
    run: Run, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    odd = "29 25 0:26 / /odd\x0bname rw - ext4 /dev/sda rw"
    table.write_text(f"{odd}\n30 25 0:26 / {mounted} rw - ext4 /dev/sda rw\n", encoding="utf-8")
    monkeypatch.setattr(os.path, "ismount", lambda _: False)
    monkeypatch.setattr(folder, "_MOUNTS", table)
    run.save(mounted)
    assert load_run(mounted).record == run.record


def test_what_a_killed_save_left_in_a_mount_point_goes_if_it_is_a_run(
    run: Run, saved: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a run may be anything: it stays, and is no obstacle."""
    monkeypatch.setattr(disk, "save_figures", lambda *_: [])
    monkeypatch.setattr(whole_file, "_STALE", -60.0)
    shutil.copytree(saved, new_work_name(mounted, "mount"))
    half = new_work_name(mounted, "mount")
    half.mkdir()
    (half / "run.json").write_text("half", encoding="utf-8")
    run.save(mounted)
    assert _entries(mounted) == sorted([half.name, "report.html", "run.json", "vectors.safetensors"])


def test_a_folder_has_a_name_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    with folder.replaced_folder(tmp_path / ("n" * 255)) as work:
        (work / "run.json").write_text("{}", encoding="utf-8")
    assert _entries(tmp_path) == ["n" * 255]


def test_a_mount_point_is_filled_and_its_run_replaced(run: Run, mounted: Path) -> None:
    for _ in range(2):
        run.save(mounted)
        assert load_run(mounted).record == run.record
        assert _entries(mounted) == ["figures", "report.html", "run.json", "vectors.safetensors"]
        assert _entries(mounted.parent) == ["mount"]
        (mounted / "report.html").write_text("old", encoding="utf-8")
    assert folder.check_output(mounted) == mounted


@pytest.mark.parametrize("moves", range(4))
def test_a_mount_point_that_is_half_filled_holds_no_run(
    run: Run, mounted: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    run.save(mounted)
    rename, left = Path.rename, [moves]

    def fails(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(InputError, match="cannot write"):
        run.save(mounted)
    with pytest.raises(RunFileError, match=r"holds no run\.json"):
        load_run(mounted)


def test_a_termination_waits_until_the_new_run_stands(run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    usual = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        signal.raise_signal(signal.SIGTERM)
        assert not noted
        return moved

    try:
        monkeypatch.setattr(Path, "rename", interrupted)
        run.save(copy)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert noted == [signal.SIGTERM]
    assert load_run(copy).record == run.record
    assert [path.name for path in copy.parent.iterdir() if path.name.startswith(f".{copy.name}")] == []

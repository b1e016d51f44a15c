"""A file is whole or as it was, and nothing is left beside it."""

import os
import signal
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from detjac_lanczos import load_run
from detjac_lanczos import whole_file as whole
from detjac_lanczos.errors import InputError
from detjac_lanczos.runs.folder import write_whole
from detjac_lanczos.whole_file import as_path, interrupts_wait, new_work_name, whole_file, work_folder
from tests.interrupts import interrupts
from tests.unreadable import no_descriptor_left


def test_it_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path, plain = tmp_path / "file", tmp_path / "plain"
    path.write_text("before")
    with whole_file(path) as beside:
        beside.write_text("after")
        assert beside.is_relative_to(tmp_path) and path.read_text() == "before"
    plain.write_text("")
    assert path.read_text() == "after"
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(tmp_path.iterdir()) == [path, plain]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_was_there_stays_if_the_block_fails(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(error), whole_file(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "error"), [("n" * 300, OSError), ("a\0b", ValueError)])
def test_a_name_that_no_file_can_have_tells_why(name: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error), whole_file(tmp_path / name):
        raise AssertionError


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no leftover be too fresh to be swept away."""
    monkeypatch.setattr(whole, "_STALE", -60.0)


def _write(path: Path, text: str) -> None:
    with whole_file(path) as beside:
        beside.write_text(text)


def _left(place: Path, name: str) -> Path:
    """Return what a process that was killed while it wrote ``name`` leaves in ``place``."""
    left = new_work_name(place, name)
    left.mkdir()
    (left / name).write_text("half")
    return left


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize("name", ["file", "n" * 255, "é" * 120, "a[b].*"])
def test_what_a_killed_process_left_is_swept_away_by_the_next_that_ends_well(name: str, tmp_path: Path) -> None:
    path, left, other = tmp_path / name, _left(tmp_path, name), _left(tmp_path, "m" * 255)
    with pytest.raises(KeyError), whole_file(path):
        raise KeyError
    assert left.exists()
    with work_folder(tmp_path, name) as held:
        (held / name).write_text("of another save")
        _write(path, "after")
        assert set(tmp_path.iterdir()) == {path, held, other}
        assert (held / name).read_text() == "of another save"
    assert set(tmp_path.iterdir()) == {path, other}


@pytest.mark.parametrize("files", [(), ("one", "two"), ("one", "below/two")], ids=["empty", "flat", "nested"])
def test_a_work_folder_vanishes_with_the_last_descriptor_that_its_lock_held(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        work = stack.enter_context(work_folder(tmp_path, "run"))
        for file in files:
            (work / file).parent.mkdir(exist_ok=True)
            (work / file).write_text("half")
        with no_descriptor_left():
            stack.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize(
    ("folder", "file"),
    [
        (".file.20240101", "file"),
        (".file2.detjac-01234567", "file2"),
        (".file.detjac-notes", "file"),
        (".file.detjac-0", "file"),
        (".file.detjac-012345678", "file"),
        (".file.detjac-01234567", "mine"),
        (".file.detjac-01234567", "file/mine"),
        (".fileXdetjac-01234567", "file"),
    ],
)
def test_what_may_be_the_users_is_not_swept_away(folder: str, file: str, tmp_path: Path) -> None:
    mine = tmp_path / folder / file
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    _write(tmp_path / "file", "after")
    assert mine.read_text() == "mine"


@pytest.mark.usefixtures("_at_once")
def test_links_are_neither_swept_away_nor_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("mine")
    link, holder = new_work_name(tmp_path, "file"), new_work_name(tmp_path, "file")
    link.symlink_to(target)
    holder.mkdir()
    (holder / "file").symlink_to(target / "file")
    _write(tmp_path / "file", "after")
    assert link.is_symlink() and (holder / "file").read_text() == "mine"


def test_what_is_fresh_or_of_another_user_is_not_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = _left(tmp_path, "file")
    _write(tmp_path / "file", "after")
    assert left.exists()
    monkeypatch.setattr(whole, "_STALE", -60.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
        _write(tmp_path / "file", "after")
    assert left.exists()
    _write(tmp_path / "file", "after")
    assert not left.exists()


def test_the_umask_is_for_the_file_alone(tmp_path: Path) -> None:
    """A umask that forbids to write leaves the folder in which the file is written as it must be."""
    before = os.umask(0o277)
    try:
        with whole_file(tmp_path / "file") as beside:
            assert stat.S_IMODE(beside.parent.stat().st_mode) == 0o700
            beside.write_text("after")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o400


@pytest.mark.parametrize("place", [None, 3, b"name", ["a"]])
def test_what_is_no_path_is_told_in_one_line(place: Any) -> None:
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        as_path(place)
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        write_whole(place, "text")
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        load_run(place)


def test_signals_go_to_the_callers_handlers_though_something_stops_their_return() -> None:
    def theirs(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    def clear_up() -> None:
        with interrupts_wait():
            pass

    usual = {number: signal.signal(number, theirs) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for place in interrupts(clear_up, "detjac_lanczos/whole_file.py"):
            for number in usual:
                with pytest.raises(KeyboardInterrupt, match=str(int(number))):
                    signal.raise_signal(number)
                assert signal.getsignal(number) is theirs, place
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)

"""A file is whole or as it was, and nothing is left beside it."""

from pathlib import Path
from typing import Any

import pytest

from detjac_lanczos import load_run
from detjac_lanczos.errors import InputError
from detjac_lanczos.runs.folder import write_whole
from detjac_lanczos.whole_file import as_path, new_work_name, sweep, whole_file, work_folder


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


def test_what_a_killed_process_left_is_swept_away_by_the_next_that_ends_well(tmp_path: Path) -> None:
    path, left = tmp_path / "file", new_work_name(tmp_path, "file")
    left.mkdir()
    (left / "file").write_text("half")
    others = [tmp_path / name for name in (".file.20240101", ".file2.detjac-0")]
    for other in others:
        other.mkdir()
        (other / "mine").write_text("")
    with pytest.raises(KeyError), whole_file(path):
        raise KeyError
    assert left.exists()
    with work_folder(tmp_path, "file") as held:
        (held / "file").write_text("of another save")
        with whole_file(path) as beside:
            beside.write_text("after")
        assert set(tmp_path.iterdir()) == {path, held, *others}
        assert (held / "file").read_text() == "of another save"
    assert set(tmp_path.iterdir()) == {path, *others}


def test_a_work_folder_that_is_swept_away_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, made = Path.mkdir, []

    def swept(self: Path) -> None:
        made.append(self)
        mkdir(self)
        if len(made) == 1:
            sweep(tmp_path, "file")

    monkeypatch.setattr(Path, "mkdir", swept)
    with work_folder(tmp_path, "file") as work:
        assert made[1] == work and list(tmp_path.iterdir()) == [work]
        sweep(tmp_path, "file")
        assert work.exists()


@pytest.mark.parametrize("place", [None, 3, b"name", ["a"]])
def test_what_is_no_path_is_told_in_one_line(place: Any) -> None:
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        as_path(place)
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        write_whole(place, "text")
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        load_run(place)

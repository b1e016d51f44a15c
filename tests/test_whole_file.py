"""A file is whole or as it was, and nothing is left beside it."""

from pathlib import Path
from typing import Any

import pytest

from detjac_lanczos import load_run
from detjac_lanczos.errors import InputError
from detjac_lanczos.runs.folder import write_whole
from detjac_lanczos.whole_file import as_path, whole_file


def test_it_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path, plain = tmp_path / "file", tmp_path / "plain"
    path.write_text("before")
    with whole_file(path) as beside:
        beside.write_text("after")
        assert beside.parent == tmp_path and path.read_text() == "before"
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


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_a_block_that_cannot_write_tells_why(name: str, tmp_path: Path) -> None:
    """What is wrong with the name stops the clearing up, too."""
    with pytest.raises(KeyError), whole_file(tmp_path / name):
        raise KeyError


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [None, 3, b"name", ["a"]])
def test_what_is_no_path_is_told_in_one_line(place: Any) -> None:
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        as_path(place)
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        write_whole(place, "text")
    with pytest.raises(InputError, match=r"^.* names no file or folder; give a path$"):
        load_run(place)

"""Folders that are whole or absent: filled under another name beside their place, then renamed.

A run folder that is already there is replaced; a folder that holds anything else is refused, never deleted. A mount
point is filled from a folder inside it, its record last. A process that is killed leaves its hidden folder, which may
be deleted.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detjac_lanczos.errors import InputError, shortage
from detjac_lanczos.whole_file import (
    as_path,
    holds_file,
    interrupts_wait,
    is_work_folder,
    locked,
    new_work_name,
    parents_made,
    sweep,
    whole_file,
    work_folder,
)

RECORD = "run.json"
VECTORS = "vectors.safetensors"
PAGE = "report.html"
FIGURES = "figures"
_MOUNTS = Path("/proc/self/mountinfo")
_FIGURE = re.compile(r"(spectra|reconstruction|contributions)(-\d+)?\.(png|svg)")
KIND = "detjac run"


def check_output(folder: str | os.PathLike[str]) -> Path:
    """Return the absolute path of an output folder, after trying that it can be written.

    Raises
    ------
    InputError
        If it cannot be created or written, or holds files that are not those of a run.
    """
    try:
        path = as_path(folder).expanduser().resolve()
        _require_ours(path)
        holder = path if _is_mount(path) else next(place for place in path.parents if place.exists())
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a null byte, in an unknown user's home
        raise InputError(f"{str(folder)[:100]!r} names no folder ({error}); choose another name") from None
    attempt = new_work_name(holder, path.name)
    try:
        attempt.mkdir()
        attempt.rmdir()
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def require_apart(output: Path, checkpoint: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint in the output folder, which is replaced as a whole and may hold nothing but a run.

    Parameters
    ----------
    output : Path
        As `check_output` returned it.
    checkpoint : path

    Raises
    ------
    InputError
    """
    try:
        inside = Path(checkpoint).expanduser().resolve().is_relative_to(output)
    except (OSError, ValueError, RuntimeError):  # no folder: whoever opens it says why
        return
    if inside:
        raise InputError(
            f"the checkpoint {str(checkpoint)!r} would lie in {output}, which may hold nothing but the run; "
            "choose another folder for one of them"
        )


@contextmanager
def replaced_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of ``folder`` if the block ends well, and vanishes if not.

    Raises
    ------
    InputError
        As `check_output`, or if the disk is full.
    """
    path = check_output(folder)
    inside = _is_mount(path)
    place = path if inside else path.parent
    try:
        with parents_made(path), work_folder(place, path.name) as work:
            yield work
            _sync(work)
            with interrupts_wait():
                (_move_in if inside else _exchange)(work, path)
        sweep(place, path.name, _is_ours)
        sweep(path, FIGURES, holds_figures)  # of a mount point, in which the old ones are still there
    except OSError as error:
        raise unwritable(path, error) from error


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file that is whole or, if anything goes wrong, as it was before.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    place = as_path(path)
    try:
        with whole_file(place.expanduser().resolve()) as beside:
            beside.write_text(text, encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:  # with a null byte, in an unknown user's home
        reason, said = getattr(error, "strerror", None) or error, shortage(error)
        otherwise = f"cannot write {str(path)!r} ({reason}); choose another place"
        raise InputError(f"cannot write {str(path)!r}: {said}" if said else otherwise) from error


def is_run_folder(path: Path) -> bool:
    """Tell whether a folder holds a record of ours (not whether it is whole)."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("kind") == KIND


def holds_figures(folder: Path) -> bool:
    """Whether a folder holds nothing but figures."""
    return all(_FIGURE.fullmatch(entry.name) and _is_file(entry) for entry in folder.iterdir())


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the error for a folder that cannot be written."""
    if said := shortage(error):
        return InputError(f"cannot write to {path}: {said}")
    return InputError(f"cannot write to {path} ({error.strerror or error}); choose a folder that can be written")


def _require_ours(path: Path) -> None:
    """Refuse a folder that may not be replaced; one that is exchanged meanwhile is looked at again."""
    while True:
        seen = _identity(path)
        try:
            return _require_run(path)
        except InputError:
            if _identity(path) == seen:
                raise


def _identity(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _require_run(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the name of a folder to write to")
    inside = _is_mount(path)
    try:  # in a mount point a killed save may have left its work
        found = sorted(entry for entry in path.iterdir() if not (inside and is_work_folder(entry, path.name)))
        figures = sorted((path / FIGURES).iterdir()) if (path / FIGURES).is_dir() else []
    except OSError as error:
        raise unwritable(path, error) from None
    if Path.cwd().is_relative_to(path):
        raise InputError(f"{path} is where this process works, and is replaced as a whole; name a folder inside it")
    foreign = [entry.name for entry in found if not _is_part(entry)]
    foreign += [
        f"{FIGURES}/{entry.name}" for entry in figures if not (_FIGURE.fullmatch(entry.name) and _is_file(entry))
    ]
    if foreign:
        raise InputError(f"{path} holds {foreign[0]!r}, which is not part of a run; choose a new or empty folder")
    if found and not is_run_folder(path):
        raise InputError(f"{path} is not empty and holds no run of detjac; choose a new or empty folder")


def _is_ours(path: Path) -> bool:
    """Whether a folder could be replaced by a run: it is empty, or holds a run and nothing else."""
    try:
        _require_ours(path)
    except InputError:
        return False
    return True


def _is_part(entry: Path) -> bool:
    """Whether an entry of a folder is by name and kind a part of a run, or of one that was being drawn again."""
    if entry.name == FIGURES:
        return entry.is_dir() and not entry.is_symlink()
    if is_work_folder(entry, FIGURES):
        return holds_figures(entry)
    if is_work_folder(entry, PAGE):
        return holds_file(entry, PAGE)
    return entry.name in (RECORD, VECTORS, PAGE) and _is_file(entry)


def _is_file(entry: Path) -> bool:
    return entry.is_file() or entry.is_symlink()


def _exchange(work: Path, path: Path) -> None:
    """Put ``work`` in the place of ``path``; what was there is deleted only once the new folder stands.

    Of processes that do so at once the last one has its way: a run that another puts there meanwhile is replaced, too.
    """
    while not _exchanged(work, path):
        pass
    _sync_one(path.parent)


def _exchanged(work: Path, path: Path) -> bool:
    """Try it once; False where another process put its run there first, and the one before that is gone."""
    old = new_work_name(path.parent, path.name)
    with locked(path):
        with suppress(FileNotFoundError):
            path.rename(old)
        try:
            work.rename(path)
        except BaseException as error:
            if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                if old.exists():
                    old.rename(path)
                raise
            _require_ours(path)
        shutil.rmtree(old, ignore_errors=True)
    return not work.exists()


def _move_in(work: Path, path: Path) -> None:
    """Move what ``work`` holds into a mount point, which cannot be renamed; without its record it is no run."""
    (path / RECORD).unlink(missing_ok=True)
    _sync_one(path)
    shutil.rmtree(path / FIGURES, ignore_errors=True)
    for name in (VECTORS, PAGE, FIGURES, RECORD):
        if (work / name).exists():
            (work / name).rename(path / name)
    _sync_one(path)


def _is_mount(path: Path) -> bool:
    """Whether a folder is a mount point; one bound from the same file system shows in Linux's table alone."""
    if os.path.ismount(path):
        return True
    try:
        table = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    place = "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\" else letter for letter in str(path))
    return any(place in line.split(" ")[4:5] for line in table.split("\n"))


def _sync(folder: Path) -> None:
    """Bring files, then the folders that name them, to the disk, so that a rename never outruns its content."""
    for place in sorted(folder.rglob("*"), reverse=True):
        _sync_one(place)
    _sync_one(folder)


def _sync_one(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

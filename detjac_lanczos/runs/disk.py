"""A run as a folder: run.json, vectors.safetensors, report.html and figures, whole or absent, read without pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from detjac_lanczos.errors import RunFileError, first_line, shortage_said
from detjac_lanczos.reading.figures import save_figures
from detjac_lanczos.reading.page import render_page
from detjac_lanczos.runs.folder import FIGURES, KIND, PAGE, RECORD, VECTORS, holds_figures, replaced_folder, unwritable
from detjac_lanczos.runs.record import FORMAT
from detjac_lanczos.runs.schema import first_fault
from detjac_lanczos.whole_file import require_opened, sweep, unreadable, work_folder

_ADVICE = "give the folder that `detjac svd --out` wrote"


def write_run(record: dict[str, Any], vectors: dict[str, Tensor], folder: str | os.PathLike[str]) -> Path:
    """Write a run and return its folder.

    Raises
    ------
    InputError
        If the folder cannot be written, or holds anything but a run.
    """
    with replaced_folder(folder) as work:
        (work / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
        (work / VECTORS).write_bytes(to_safetensors(vectors))
        (work / PAGE).write_text(render_page(record, vectors), "utf-8")
        save_figures(record, vectors, work / FIGURES)
    return Path(folder)


def draw_again(record: dict[str, Any], vectors: dict[str, Tensor], folder: Path) -> list[Path]:
    """Put new figures into the folder of a run once all are drawn; return their paths: none without matplotlib.

    Raises
    ------
    InputError
        If they cannot be written.
    """
    try:
        with work_folder(folder, FIGURES) as work:
            drawn = save_figures(record, vectors, work)
            if drawn:
                (folder / FIGURES).mkdir(exist_ok=True)
            placed = [path.replace(folder / FIGURES / path.name) for path in drawn]
        sweep(folder, FIGURES, holds_figures)  # also of a killed process
        return placed
    except OSError as error:
        raise unwritable(folder / FIGURES, error) from error


def read_run(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the record and the vectors of a run folder.

    Raises
    ------
    RunFileError
        If the folder is missing, foreign, truncated, damaged, or written by a newer version, or cannot be read (also as
        memory or file descriptors run out).
    """
    with shortage_said(f"read {path}", RunFileError):
        return _record(path), _vectors(path / VECTORS)


def _vectors(place: Path) -> dict[str, Tensor]:
    try:
        require_opened(place)
        return load_file(place)
    except FileNotFoundError:
        raise RunFileError(f"{place} is missing; make the run again") from None
    except (SafetensorError, ValueError) as error:
        raise _damaged(place, error) from None
    except (OSError, RuntimeError) as error:
        raise unreadable(place, error) from None


def _record(path: Path) -> dict[str, Any]:
    if not os.path.isdir(path):  # unlike Path's own, no error for a name that is too long
        raise RunFileError(f"there is no run folder {path}; {_ADVICE}")
    place = path / RECORD
    try:
        record = json.loads(place.read_text(encoding="utf-8"), parse_int=_number)
    except FileNotFoundError:
        raise RunFileError(f"{path} holds no {RECORD}: it is no run; {_ADVICE}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(place, error) from None
    except OSError as error:
        raise unreadable(place, error) from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise RunFileError(f"{place} was not written by detjac; {_ADVICE}")
    form = record.get("format")
    if type(form) is not int or form < 1:
        raise RunFileError(f"{place} has no format number that was ever written; make the run again")
    if form > FORMAT:
        versions = record.get("versions")
        by = versions.get("detjac_lanczos", "a newer version") if isinstance(versions, dict) else "a newer version"
        raise RunFileError(
            f"{place} has format {form}, written by detjac-lanczos {by}; this version reads up to {FORMAT}: upgrade it"
        )
    if fault := first_fault(record):
        raise RunFileError(f"{place} {fault}; make the run again")
    if not 0 <= (seed := record["options"]["seed"]) < 2**32:
        raise RunFileError(f"{place} says options.seed is {seed}, not from 0 to 2³² - 1; make the run again")
    return record


def _number(text: str) -> int | float:
    """Return a number without point and exponent: beyond 64 bits, which tensors and streams do not take, as a float."""
    value = float(text)
    return int(text) if abs(value) < 2**63 else value


def _damaged(path: Path, error: Exception) -> RunFileError:
    return RunFileError(f"{path} is truncated or damaged ({first_line(error)}); make the run again")

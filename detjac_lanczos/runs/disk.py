"""A run as a folder: run.json, vectors.safetensors, report.html and figures, whole or absent, read without pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from detjac_lanczos.errors import RunFileError
from detjac_lanczos.runs.folder import FIGURES, KIND, PAGE, RECORD, VECTORS, replaced_folder
from detjac_lanczos.runs.record import FORMAT
from detjac_lanczos.runs.run import Run

_PARTS = {
    "versions": dict,
    "model": str,
    "fingerprint": str,
    "prompts": list,
    "token_ids": list,
    "prompt_tokens": list,
    "freeze": str,
    "dtype": str,
    "definition": dict,
    "options": dict,
    "predictions": list,
    "reconstructions": list,
    "tokens": list,
    "work": dict,
    "choices": dict,
    "times": dict,
}
_ADVICE = "give the folder that `detjac svd --out` wrote"


def save_run(run: Run, folder: str | os.PathLike[str]) -> Path:
    """Write a run and return its folder.

    Raises
    ------
    InputError
        If the folder cannot be written, or holds anything but a run.
    """
    from detjac_lanczos.reading.figures import save_figures

    with replaced_folder(folder) as work:
        (work / RECORD).write_text(json.dumps(run.record, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
        (work / VECTORS).write_bytes(to_safetensors(run.vectors))
        (work / PAGE).write_text(run.page(), "utf-8")
        (work / FIGURES).mkdir()
        save_figures(run.record, run.vectors, work / FIGURES)
    return Path(folder)


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run that `Run.save` or ``detjac svd --out`` wrote.

    Raises
    ------
    RunFileError
        If the folder is missing, foreign, truncated, damaged, or written by a newer version.
    """
    path = Path(folder).expanduser()
    record = _record(path)
    try:
        vectors = load_file(path / VECTORS)
    except FileNotFoundError:
        raise RunFileError(f"{path / VECTORS} is missing; make the run again") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise RunFileError(
            f"{path / VECTORS} is truncated or damaged ({_first_line(error)}); make the run again"
        ) from None
    run = Run(record, vectors)
    try:
        _require_whole(run)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunFileError(f"{path / RECORD} lacks {_first_line(error)}; make the run again") from None
    return run


def _record(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise RunFileError(f"there is no run folder {path}; {_ADVICE}")
    place = path / RECORD
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFileError(
            f"{path} holds no {RECORD}: it is no run; give the folder that `detjac svd --out` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(place, error) from None
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise RunFileError(f"{place} was not written by detjac; {_ADVICE}")
    form = record.get("format")
    if not isinstance(form, int) or form < 1:
        raise RunFileError(f"{place} has no format number that was ever written; make the run again")
    if form > FORMAT:
        versions = record.get("versions")
        by = versions.get("detjac_lanczos", "a newer version") if isinstance(versions, dict) else "a newer version"
        raise RunFileError(
            f"{place} has format {form}, written by detjac-lanczos {by}; this version reads up to {FORMAT}: upgrade it"
        )
    return record


def _require_whole(run: Run) -> None:
    """Compare the record with the vectors: every token has its triplets, of one size, every prompt its output."""
    if absent := [name for name, kind in _PARTS.items() if not isinstance(run.record.get(name), kind)]:
        raise KeyError(absent[0])
    for prompt in range(len(run.record["token_ids"])):
        if run.vectors[f"y.{prompt}"].ndim != 1:
            raise KeyError(f"a vector y.{prompt}")
    for token in run.tokens:
        k = len(token.record["singular_values"])
        shapes = (token.U.shape[-1], token.S.shape[-1], token.V.shape[-1], len(token.record["residuals"]))
        sized = token.U.ndim == token.V.ndim == 2 and all(size == k for size in shapes)
        if not sized or not all(part.dtype in (torch.float32, torch.float64) for part in (token.U, token.S, token.V)):
            raise KeyError(f"{k} triplets of token {token.index} of prompt {token.prompt}")


def _damaged(path: Path, error: Exception) -> RunFileError:
    return RunFileError(f"{path} is truncated or damaged ({_first_line(error)}); make the run again")


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return text.splitlines()[0] if text else type(error).__name__

"""A solve on disk: every pass and decision is written down as it is made, and read back instead of made again.

All else in a solve follows from its options, its seed and what the operators returned. So a solve that was cut off
anywhere goes on from its journal bit for bit: it runs again from the start, takes the passes that are written down from
there, and asks the operators only for those that are not.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detjac_lanczos.errors import InputError, RunFileError, shortage, shortage_said
from detjac_lanczos.solvers.operator import OperatorBatch
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.whole_file import whole_file

FORMAT = 1
KIND = "detjac solve"
_HEADER = "solve.json"
_DECISION = "decision.json"
_DERIVED = ("width", "later", "timed", "capacity")
"""Options that nobody gives to a solve: they follow from those that are."""

_FINGERPRINTS = {"start": "another start, or none", "shapes": "operators of other shapes"}
"""What is said of parts of a header that are no words of the caller."""

_GOALS = ("threshold", "energy")
"""Told before ``k``, which nobody gives with them."""


class Journal:
    """A folder that holds a solve in the making: ``solve.json``, one safetensors file a pass, and ``decision.json``.

    Files are written under another name and renamed, so each is whole or absent. A pass is read back only for the very
    blocks that it was made of, after the pass that it was made after, and with the checksum that it was written with;
    where a block differs (another processor or library rounds differently), or the file was damaged or is of another
    journal, the pass and all that follow it are made again. A decision that was damaged is timed again.

    Parameters
    ----------
    folder : Path
        Made where it does not exist.
    header : dict
        What the solve was asked for, as plain data.

    Raises
    ------
    InputError
        The folder cannot be written, or holds something else, or the journal of a solve with other options.
    RunFileError
        The journal is damaged, or was written by a newer version.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder = folder
        self._next = 0
        self._latest = ""  # the checksum of the pass before the next: other operators may be sent the same blocks
        self._replaying = True
        self._open(json.loads(json.dumps({"kind": KIND, "format": FORMAT, **header})))

    def read(self, way: str, blocks: Sequence[Tensor], device: torch.device) -> tuple[list[Tensor], float] | None:
        """Return the products of the next pass and the seconds that it took; None where it has to be made.

        Parameters
        ----------
        way : str
            The kind of pass, and which operators it serves.
        blocks : sequence of Tensor
            What is sent.
        device : torch.device
            Where products are expected.

        Raises
        ------
        RunFileError
            Memory or file descriptors run out: what cannot be read may be whole.
        """
        if not self._replaying:
            return None
        with shortage_said(f"read {self._pass(self._next)}", RunFileError):
            found = self._read(way, blocks, device)
        if found is None:
            self._end_replay()
        return found

    def _read(self, way: str, blocks: Sequence[Tensor], device: torch.device) -> tuple[list[Tensor], float] | None:
        try:
            with safe_open(self._pass(self._next), "pt", device="cpu") as file:
                metadata = file.metadata()
                products = [file.get_tensor(str(index)) for index in range(int(metadata["products"]))]
            seconds = metadata["seconds"]
            of, found = digest(way, self._latest, *blocks), checksum(seconds, *products)
            if (metadata["of"], metadata["checksum"]) == (of, found):
                self._next, self._latest = self._next + 1, found
                return [product.to(device) for product in products], float(seconds)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            # Missing or damaged: this pass is made again, like one that was never written down.
            if shortage(error):
                raise
        return None

    def write(self, way: str, blocks: Sequence[Tensor], products: Sequence[Tensor], seconds: float) -> None:
        """Write a pass down."""
        whole = torch.contiguous_format
        tensors = {str(index): product.clone(memory_format=whole) for index, product in enumerate(products)}
        metadata = {
            "of": digest(way, self._latest, *blocks),
            "products": str(len(products)),
            "seconds": repr(seconds),
            "checksum": checksum(repr(seconds), *products),
        }
        self._whole(self._pass(self._next), lambda path: save_file(tensors, path, metadata=metadata))
        self._next, self._latest = self._next + 1, metadata["checksum"]

    @property
    def decision(self) -> dict[str, float]:
        """What was decided by timing; empty before it was, and where what is there is not as it was written.

        Raises
        ------
        RunFileError
            Memory or file descriptors run out: what cannot be read may be whole.
        """
        with shortage_said(f"read {self.folder / _DECISION}", RunFileError):
            return self._decision()

    def _decision(self) -> dict[str, float]:
        try:
            written = json.loads((self.folder / _DECISION).read_text("utf-8"))
            decided, expected = written["decided"], written["checksum"]
            known = {str(name): float(seconds) for name, seconds in decided.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            # Missing or damaged: it is timed again.
            if shortage(error):
                raise
            return {}
        return known if expected == checksum(json.dumps(decided)) else {}

    def decide(self, decision: dict[str, float]) -> None:
        """Write down what was decided by timing."""
        text = json.dumps({"decided": decision, "checksum": checksum(json.dumps(decision))})
        self._whole(self.folder / _DECISION, lambda path: path.write_text(text, "utf-8"))

    def _open(self, header: dict[str, Any]) -> None:
        place = self.folder / _HEADER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                if any(entry.name[0] != "." for entry in self.folder.iterdir()):
                    raise InputError(f"{self.folder} holds no solve but other files: give a new or empty folder")
                self._whole(place, lambda path: path.write_text(json.dumps(header, indent=1), "utf-8"))
            text = place.read_bytes()
        except OSError as error:
            if said := shortage(error):
                raise InputError(f"cannot open {self.folder}: {said}") from error
            raise InputError(f"cannot write to {self.folder} ({error.strerror}): give another folder") from error
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunFileError(f"{place} is damaged ({error}): give a new folder") from error
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise InputError(f"{place} is no solve of ours: give a new or empty folder")
        if type(found.get("format")) is not int or found["format"] < FORMAT:
            raise RunFileError(f"{place} is damaged (format = {found.get('format')!r}): give a new folder")
        if found["format"] > FORMAT:
            raise RunFileError(f"{place} has format {found['format']}, newer than {FORMAT}: update detjac-lanczos")
        for name, value in sorted(header.items(), key=lambda item: item[0] not in _GOALS):
            if found.get(name) != value:
                other = _FINGERPRINTS.get(name, f"{name} = {found.get(name)!r} instead of {value!r}")
                raise InputError(f"{self.folder} holds a solve with {other}: repeat its options, or give a new folder")

    def _end_replay(self) -> None:
        """Forget the passes that come after those read back: they belong to another course of the solve."""
        self._replaying = False
        stale = [path for path in self.folder.glob("pass-*.safetensors") if path >= self._pass(self._next)]
        for path in stale:
            try:
                path.unlink(missing_ok=True)  # another process may clean up as well
            except OSError as error:
                raise InputError(f"cannot remove {path} ({error.strerror}): give another folder") from error

    def _pass(self, number: int) -> Path:
        return self.folder / f"pass-{number:06d}.safetensors"

    def _whole(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            with shortage_said(f"write {path}", InputError), whole_file(path) as beside:
                write(beside)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {path} ({error}): make room, or give another folder") from error


def open_journal(
    folder: str | os.PathLike[str] | None, operators: OperatorBatch, options: Options, **more: Any
) -> Journal | None:
    """Return the journal of a solve with these options, begun or not; None where no folder is given.

    ``more`` is what else was given, as plain data; a difference is told by the names of :func:`svd`.

    Raises
    ------
    InputError, RunFileError
        As :class:`Journal`.
    """
    if folder is None:
        return None
    place = checkpoint_folder(folder)
    plain = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in _DERIVED}
    header = (
        plain
        | more
        | {
            "start": None if options.start is None else digest("start", *options.start),
            "dtype": str(operators.dtype),
            "operators": len(operators.shapes),
            "shapes": digest(str([tuple(shape) for shape in operators.shapes])),
        }
    )
    return Journal(place, header)


def checkpoint_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint, which need not exist.

    Raises
    ------
    InputError
        If it can be none.
    """
    unusable = InputError(f"checkpoint = {folder!r} names no folder: give a path, or None")
    if not isinstance(folder, str | os.PathLike) or not (name := os.fspath(folder)) or "\0" in str(name):
        raise unusable
    try:
        return Path(folder).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # the home of nobody, links in a circle
        raise unusable from error


def digest(*parts: str | Tensor) -> str:
    """Return a fingerprint of words and of tensors, bit for bit."""
    found = hashlib.sha256()
    for part in _bytes(parts):
        found.update(part)
    return found.hexdigest()


def checksum(*parts: str | Tensor) -> str:
    """Return the CRC-32 of words and of tensors: it shows damage, in a tenth of the time of writing them."""
    found = 0
    for part in _bytes(parts):
        found = zlib.crc32(part, found)
    return f"{found:08x}"


def _bytes(parts: Sequence[str | Tensor]) -> Iterator[bytes | memoryview]:
    for part in parts:
        if isinstance(part, Tensor):
            yield f"{tuple(part.shape)} {part.dtype}".encode()
            yield part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        else:
            yield part.encode()

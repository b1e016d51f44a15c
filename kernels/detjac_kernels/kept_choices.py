"""Measured choices in the user's cache folder: a device is measured once, not once a process.

A file belongs to one table, one model of device and one set of versions. It is replaced whole, by renaming; a file that
is damaged, or of something else, counts as none and is written anew. A folder that cannot be written costs only time.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from platformdirs import user_cache_path

PATIENCE = 5.0
"""Seconds to wait for another process that writes the same file."""


class Kept(NamedTuple):
    """The road of a class of shapes, and the seconds of all that were measured."""

    road: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class KeptChoices:
    """The choices of one table on one kind of device.

    ``path``: where they lie; ``machine``: everything that a measurement depends on besides the class of shapes.
    """

    path: Path
    machine: Mapping[str, str]
    _read: dict[str, Kept] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._read.update(self._on_disk())

    def get(self, key: str) -> Kept | None:
        """Return what was measured for a class of shapes."""
        return self._read.get(key)

    def add(self, key: str, kept: Kept) -> None:
        """Keep a measurement, beside those that other processes have kept meanwhile."""
        self._read[key] = kept
        with suppress(OSError, NotImplementedError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=PATIENCE):
                rows = {name: row._asdict() for name, row in (self._on_disk() | {key: kept}).items()}
                _replace(self.path, json.dumps({"machine": dict(self.machine), "choices": rows}, indent=1))

    def _on_disk(self) -> dict[str, Kept]:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            if record["machine"] != self.machine:
                return {}
            return {
                key: Kept(str(row["road"]), {name: float(s) for name, s in row["seconds"].items()})
                for key, row in record["choices"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}


@cache
def kept_choices(table: str, device: torch.device) -> KeptChoices | None:
    """Return the choices that are kept for a table on a CUDA device; None on others, where nothing is kept."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    packages = [name for name in ("torch", "triton", "bitsandbytes") if find_spec(name) is not None]
    machine = {
        "device": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        **{name: str(getattr(import_module(name), "__version__", "unknown")) for name in packages},
        "kernels": _sources(),
    }
    digest = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{table} {machine['device']}")
    return KeptChoices(user_cache_path("detjac_lanczos") / "roads" / f"{name}-{digest}.json", machine)


def _sources() -> str:
    """Return a digest of this package's files: another version of a kernel is another road."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all, with the permissions of any other: several users may share the cache."""
    work = path.with_name(f"{path.stem}{secrets.token_hex(4)}.tmp")
    try:
        with work.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise

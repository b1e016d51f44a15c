"""Unpacked weights in the user's cache folder: written atomically, once, by one process; checked when read.

Layout: ``<cache>/unpacked/<file>-<sha256 of the GGUF>-t<transformers>-f<format>/`` is an ordinary model folder plus
``cache.json``. A folder is whole or absent, since it is filled under another name and renamed.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from detjac_lanczos.errors import ModelError
from detjac_lanczos.models.gguf_file import unpack
from detjac_lanczos.whole_file import is_work_folder, work_folder

CACHE_FORMAT = 2
MANIFEST = "cache.json"
WEIGHTS = "model.safetensors"
LONGEST_STEM = 160
"""Bytes of a file's name that are kept in that of its folder; file systems take 255 for the whole."""

_log = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root() -> Path:
    """Return the folder of all unpacked models (``XDG_CACHE_HOME`` is respected).

    Raises
    ------
    ModelError
        If the user has no home.
    """
    try:
        return user_cache_path("detjac_lanczos") / "unpacked"
    except RuntimeError as error:
        raise ModelError(
            "there is no home to keep unpacked weights in; set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def cache_folder_of(file_name: str, sha256: str) -> Path:
    """Return where the model unpacked from a GGUF file with this hash lies or would lie."""
    version = metadata.version("transformers")
    stem = os.fsencode(Path(file_name).stem)[:LONGEST_STEM].decode(errors="ignore")
    return cache_root() / f"{stem}-{sha256[:16]}-t{version}-f{CACHE_FORMAT}"


def is_cached(file_name: str, sha256: str) -> bool:
    """Tell whether the unpacked model is there (not whether it is sound)."""
    manifest = cache_folder_of(file_name, sha256) / MANIFEST
    return os.path.isfile(manifest)  # unlike Path's own, no error in a folder of another user


def unpacked_folder(
    file_name: str, sha256: str, seconds: int, gguf: Callable[[], AbstractContextManager[Path]]
) -> Path:
    """Return the folder of the unpacked model, unpacking it first if this machine has not done so yet.

    Parameters
    ----------
    file_name, sha256
        Of the GGUF file.
    seconds
        About how long unpacking takes, for the message.
    gguf
        Gives the file itself; called only if it has to be unpacked.

    Raises
    ------
    ModelError
        If the file cannot be unpacked, or the cache folder cannot be written.
    """
    folder = cache_folder_of(file_name, sha256)
    if is_cached(file_name, sha256):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not is_cached(file_name, sha256):
                with gguf() as path:
                    _log.warning("unpacking %s, once, about %s s", file_name, seconds)
                    _fill(folder, path)
    except OSError as error:
        in_the_way = next((path for path in (folder, *folder.parents) if os.path.isfile(path)), None)
        if in_the_way is not None:
            raise ModelError(
                f"cannot keep unpacked weights in {folder}: {in_the_way} is a file; delete it or set XDG_CACHE_HOME"
            ) from error
        raise ModelError(
            f"cannot keep unpacked weights in {folder.parent} ({error.strerror or error}); free space there or set"
            " XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def check_small_files(folder: Path) -> str:
    """Compare every file but the weights with the manifest; return the fingerprint that the weights must have.

    Raises
    ------
    ModelError
        Naming the file that is damaged, or that does not belong there.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted, fingerprint = dict(manifest["files"].items()), str(manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(folder, MANIFEST) from None
    for path in folder.iterdir():
        if path.name not in (MANIFEST, WEIGHTS, *wanted) and not path.name.startswith("."):
            raise ModelError(f"{path} is no file of the unpacked model, and would be read with it; delete it")
    for name, sha256 in wanted.items():
        path = folder / name
        if not os.path.isfile(path) or sha256_of(path) != sha256:  # unlike Path's own, no error for a name too long
            raise damaged(folder, name)
    return fingerprint


def damaged(folder: Path, name: str) -> ModelError:
    """Return the error for a damaged file of the cache."""
    return ModelError(f"{folder / name} is damaged; delete the folder {folder} and load the model again")


def _fill(folder: Path, gguf: Path) -> None:
    """Unpack `gguf` beside `folder` and rename; the lock is held, so what killed processes left can be swept away."""
    for leftover in [path for path in folder.parent.iterdir() if is_work_folder(path, folder.name)]:
        shutil.rmtree(leftover, ignore_errors=True)
    with work_folder(folder.parent, folder.name) as work:
        fingerprint = unpack(gguf, work)
        files = {path.name: sha256_of(path) for path in sorted(work.iterdir()) if path.name != WEIGHTS}
        manifest = {"format": CACHE_FORMAT, "source": gguf.name, "fingerprint": fingerprint, "files": files}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        permissions = (work / MANIFEST).stat().st_mode
        for path in work.iterdir():
            path.chmod(permissions)  # safetensors gives its own to nobody but the user
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)

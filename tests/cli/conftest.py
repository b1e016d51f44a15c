"""A tiny model on disk, and a copy of it to be harmed."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_llama import save_tiny_llama


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny model."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def harmed(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model, to be harmed."""
    return Path(shutil.copytree(folder, tmp_path / "harmed"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take interrupts as a terminal's processes do: those started in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

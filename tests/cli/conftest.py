"""A tiny model on disk, a run of it, and copies of both to be harmed."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from detjac_lanczos.models import load_model
from detjac_lanczos.runs import analyze, disk
from tests.tiny_llama import PROMPT, save_tiny_llama


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny model."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def harmed(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model, to be harmed."""
    return Path(shutil.copytree(folder, tmp_path / "harmed"))


@pytest.fixture(scope="session")
def standing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of the first token, without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "save_figures", lambda *_: [])
        return analyze(load_model(folder), PROMPT, 2, tokens=[0]).save(tmp_path_factory.mktemp("standing") / "out")


@pytest.fixture
def out(standing: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder of a run, alone in its folder."""
    return Path(shutil.copytree(standing, tmp_path / "out"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take interrupts as a terminal's processes do: those started in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

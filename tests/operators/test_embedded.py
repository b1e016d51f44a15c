"""The two embedded models: J against reverse mode through their own modules, reconstruction in every precision."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from detjac_kernels import roads
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators import DetachedNetwork, detach
from tests.oracles import OracleA, embeddings_of, errors

PROMPT = "The bridge out of Marin is the"
BFLOAT16 = {"smollm2": 0.0167, "gemma3": 0.0178}
"""Twice the reconstruction error ‖ŷ − y‖ / ‖y‖ measured for this prompt (8.31e-3 and 8.86e-3)."""


@pytest.fixture(params=["smollm2", "gemma3"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loaded(name: str, request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue(name)


def dense(network: DetachedNetwork) -> Tensor:
    """Return the Jacobians of all tokens of the first prompt, (d, n, d), by one transposed sweep of the identity."""
    batch = network.jacobians([(0, i) for i in range(network.lengths[0])])
    return torch.stack([block.T for block in batch.rmatmat_shared(torch.eye(network.hidden_size))], dim=1)


@cache
def network_of(loaded: LoadedModel) -> DetachedNetwork:
    return detach(loaded, [PROMPT, "Paris is"])


@cache
def expected(loaded: LoadedModel) -> Tensor:
    ids = list(network_of(loaded).prompts[0].ids)
    return OracleA(loaded.model, embeddings_of(loaded.model, ids)).jacobian(0, "output", len(ids) - 1)


def test_every_token_agrees_with_reverse_mode(loaded: LoadedModel, name: str) -> None:
    """Largest entries on the fastest road are bounded on SmolLM2 only: see the test below."""
    network = network_of(loaded)
    found = dense(network)
    for token in range(found.shape[1]):
        frobenius, largest = errors(found[:, token], expected(loaded)[:, token])
        assert frobenius <= 2e-6, token
        assert name == "gemma3" or largest <= 2e-6, token
    if name == "smollm2":
        values = torch.linalg.svdvals(found[:, 0])[:3]
        assert torch.allclose(values, torch.tensor([63.93, 3.915, 3.37]), rtol=2e-3)
    J = network.jacobian(3)
    X = torch.randn(J.shape[1], 16, generator=torch.Generator().manual_seed(0))
    assert errors(J.matmat(X), expected(loaded)[:, 3] @ X)[0] <= 2e-6


def test_largest_entries_on_the_default_road(gemma3: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """OneDNN adds up a dot product of 2048 terms in one go, which can show in a single entry; the default does not."""
    monkeypatch.setattr(roads, "_onednn_available", lambda: False)
    found = dense(network_of(gemma3))
    for token in range(found.shape[1]):
        assert max(errors(found[:, token], expected(gemma3)[:, token])) <= 2e-6, token


def test_float32_reconstruction(loaded: LoadedModel) -> None:
    for prompt in range(2):
        found = network_of(loaded).jacobian((prompt, 0)).reconstruction
        assert found.relative_error <= 1e-6
        assert found.norm_error <= 1e-6
        assert found.offset_share == 0


def test_float64_is_float64_throughout(smollm2: LoadedModel) -> None:
    double = load_model(copy.deepcopy(smollm2.model).double(), smollm2.tokenizer)
    network = detach(double, PROMPT)
    assert network.reconstruction.relative_error <= 1e-13
    assert network.reconstruction.norm_error <= 1e-13
    J = network.jacobian(2)
    v, u = (torch.randn(576, 2, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    forwards = J.matmat(v)
    gap = ((forwards * u).sum(0) - (v * J.rmatmat(u)).sum(0)).abs()
    assert torch.all(gap <= 10 * 2.0**-52 * J.segment.length**0.5 * forwards.norm(dim=0) * u.norm(dim=0))


def test_bfloat16_reconstruction(loaded: LoadedModel, name: str) -> None:
    half = load_model(copy.deepcopy(loaded.model).bfloat16(), loaded.tokenizer)
    network = detach(half, PROMPT)
    assert network.dtype is torch.bfloat16
    assert network.reconstruction.norm_error <= BFLOAT16[name]
    assert network.reconstruction.relative_error <= BFLOAT16[name]


def test_the_next_token(smollm2: LoadedModel) -> None:
    assert network_of(smollm2).prediction[0].token == " only"

"""The two embedded models: J against reverse mode through their own modules, reconstruction in every precision."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_kernels import roads
from detjac_lanczos.frozen.places import attention, layer, mlp
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators import DetachedNetwork, detach
from tests.oracles import OracleA, OracleB, embeddings_of, errors

PROMPT = "The bridge out of Marin is the"
BFLOAT16 = {"smollm2": 0.0167, "gemma3": 0.0178}
"""Twice the reconstruction error ‖ŷ − y‖ / ‖y‖ measured for this prompt (8.31e-3 and 8.86e-3)."""


@pytest.fixture(params=["smollm2", "gemma3"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loaded(name: str, request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue(name)


def rows_of(network: DetachedNetwork, rows: Tensor, prompt: int = 0, **ends: Any) -> Tensor:
    """Return rows of the Jacobians of all tokens of a prompt, (r, n, d): one transposed sweep of the (r, d) given."""
    batch = network.jacobians([(prompt, i) for i in range(network.lengths[prompt])], **ends)
    return torch.stack([block.T for block in batch.rmatmat_shared(rows.T.contiguous())], dim=1)


def places(network: DetachedNetwork) -> list[tuple[int | str, object, str, object]]:
    """Sources and targets along a network, each as an oracle and as the library names it."""
    third, half = network.blocks // 3, network.blocks // 2
    return [
        ("embeddings", "embeddings", "output", "output"),
        ("embeddings", "embeddings", f"attention.{half}", attention(half)),
        (third, layer(third), f"layer.{half}", layer(half)),
        (third, layer(third), f"mlp.{half}", mlp(half)),
    ]


@cache
def network_of(loaded: LoadedModel) -> DetachedNetwork:
    return detach(loaded, [PROMPT, "Paris is"])


@contextmanager
def only_road(default: bool) -> Iterator[None]:
    """Have one library make every product of a sweep: which is taken is a matter of time, and of what else runs."""
    before = roads.choices()
    roads.forget(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roads, "_measure", lambda rival, *_: "default" if default else rival)
        yield
    roads.forget(roads.choices())
    roads.replay(before)


def test_every_token_agrees_with_reverse_mode(loaded: LoadedModel, name: str) -> None:
    network = network_of(loaded)
    ids = list(network.prompts[0].ids)
    expected = OracleA(loaded.model, embeddings_of(loaded.model, ids)).jacobian("embeddings", "output", len(ids) - 1)
    rows = torch.eye(network.hidden_size)
    for default, few in ((False, rows), (True, rows[::12])):
        with only_road(default):
            found = rows_of(network, few)
        for token in range(len(ids)):
            assert max(errors(found[:, token], few @ expected[:, token])) <= 2e-6, (token, default)
    if name == "smollm2":
        values = torch.linalg.svdvals(expected[:, 0])[:3]
        assert torch.allclose(values, torch.tensor([63.93, 3.915, 3.37]), rtol=2e-3)
    J = network.jacobian(3)
    X = torch.randn(J.shape[1], 16, generator=torch.Generator().manual_seed(0))
    for default in (True, False):
        with only_road(default):
            assert errors(J.matmat(X), expected[:, 3] @ X)[0] <= 2e-6


def test_so_do_layers_and_branches_of_another_prompt(loaded: LoadedModel) -> None:
    network = network_of(loaded)
    ids = list(network.prompts[1].ids)
    reverse = OracleA(loaded.model, embeddings_of(loaded.model, ids))
    rows = torch.eye(network.hidden_size)[::12]
    for source, at, target, place in places(network):
        expected = reverse.jacobian(source, target, len(ids) - 1, rows)
        for default in (True, False):
            with only_road(default):
                found = rows_of(network, rows, prompt=1, source=at, target=place)
            for token in range(len(ids)):
                assert max(errors(found[:, token], expected[:, token])) <= 2e-6, (target, token, default)


def test_in_float64_both_oracles_agree(loaded: LoadedModel) -> None:
    """In float32 the difference f(x + δ) − f(x) cancels: the modules' own rounding is up to 4e-5 of it."""
    double = load_model(copy.deepcopy(loaded.model).double(), loaded.tokenizer)
    network = detach(double, PROMPT)
    assert network.reconstruction.relative_error <= 1e-13
    assert network.reconstruction.norm_error <= 1e-13
    x = embeddings_of(double.model, list(network.prompts[0].ids))
    reverse, pinned = OracleA(double.model, x), OracleB(double.model, x)
    generator = torch.Generator().manual_seed(0)
    delta, cotangents = (torch.randn(*size, generator=generator, dtype=x.dtype) for size in (x.shape, (4, x.shape[1])))
    change = pinned.change(delta)
    for source, at, target, place in places(network):
        expected = reverse.jacobian(source, target, len(x) - 1, cotangents)
        assert max(errors(rows_of(network, cotangents, source=at, target=place), expected)) <= 1e-11, target
        if source == "embeddings":
            moved = network.jacobian("joint", target=place).matmat(delta.flatten()[:, None])[:, 0]
            assert max(errors(moved, change[target][-1])) <= 1e-11, target
    J = network.jacobian(2)
    forwards, u = J.matmat(delta.T[:, :2]), cotangents.T[:, :2]
    gaps = ((forwards * u).sum(0) - (delta.T[:, :2] * J.rmatmat(u)).sum(0)).abs()
    assert torch.all(gaps <= 10 * 2.0**-52 * J.segment.length**0.5 * forwards.norm(dim=0) * u.norm(dim=0))


def test_float32_reconstruction(loaded: LoadedModel) -> None:
    for prompt in range(2):
        found = network_of(loaded).jacobian((prompt, 0)).reconstruction
        assert found.relative_error <= 1e-6
        assert found.norm_error <= 1e-6
        assert found.offset_share == 0


def test_bfloat16_reconstruction(loaded: LoadedModel, name: str) -> None:
    half = load_model(copy.deepcopy(loaded.model).bfloat16(), loaded.tokenizer)
    network = detach(half, PROMPT)
    assert network.dtype is torch.bfloat16
    assert network.reconstruction.norm_error <= BFLOAT16[name]
    assert network.reconstruction.relative_error <= BFLOAT16[name]


def test_the_next_token(smollm2: LoadedModel) -> None:
    assert network_of(smollm2).prediction[0].token == " only"

"""Contributions sum to the output; all triplets reproduce all of them."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detjac_lanczos.operators import DetachedNetwork, detach
from detjac_lanczos.reading import contributions, estimate_contributions, measure_contribution
from tests import tiny_models


def truncated(network: DetachedNetwork, k: int) -> list[SimpleNamespace]:
    found = []
    for operator in network.jacobians().operators:
        U, S, Vh = torch.linalg.svd(operator.dense(), full_matrices=False)
        found.append(SimpleNamespace(U=U[:, :k], S=S[:k], V=Vh[:k].T))
    return found


def test_products_sum_to_the_output(network: DetachedNetwork) -> None:
    batch = network.jacobians()
    parts = contributions(batch, truncated(network, 3))
    total = torch.stack([part.product for part in parts]).sum(dim=0)
    y = batch.operators[0].y
    assert float((total - y).norm() / y.norm()) < 1e-13
    assert sum(part.share * part.cosine for part in parts) == pytest.approx(1, rel=1e-12)


def test_all_triplets_capture_everything_and_more_capture_more(network: DetachedNetwork) -> None:
    batch = network.jacobians()
    captured = [[part.captured for part in contributions(batch, truncated(network, k))] for k in (1, 4, 12, 24)]
    assert captured[-1] == pytest.approx([1] * len(batch), rel=1e-12)
    for fewer, more in pairwise(captured):
        assert all(a <= b + 1e-12 for a, b in zip(fewer, more, strict=True))


def test_known_values() -> None:
    """J = diag(3, 4), x = (1, 1), y = (3, 0): the leading triplet (σ = 4) reproduces 16 of 25."""
    found = SimpleNamespace(U=torch.tensor([[0.0], [1.0]]), S=torch.tensor([4.0]), V=torch.tensor([[0.0], [1.0]]))
    part = measure_contribution(torch.tensor([3.0, 4.0]), torch.ones(2), torch.tensor([3.0, 0.0]), found)
    assert part.share == pytest.approx(5 / 3)
    assert part.cosine == pytest.approx(3 / 5)
    assert part.captured == pytest.approx(16 / 25)


def test_a_token_without_influence_contributes_nothing() -> None:
    found = SimpleNamespace(U=torch.zeros(2, 1), S=torch.zeros(1), V=torch.zeros(2, 1))
    part = measure_contribution(torch.zeros(2), torch.ones(2), torch.ones(2), found)
    assert (part.share, part.cosine, part.captured) == (0, 0, 1)


def test_cosines_of_an_estimate_are_with_the_output_of_their_own_prompt() -> None:
    """All triplets capture everything: nothing is left to estimate."""
    prompts = detach(tiny_models.loaded(tiny_models.llama()), input_ids=tiny_models.prompt_ids(4, 3))
    batch, triplets = prompts.jacobians(), truncated(prompts, 24)
    found, measured = estimate_contributions(batch, triplets), contributions(batch, triplets)
    assert [part.cosine for part in found] == pytest.approx([part.cosine for part in measured], rel=1e-9)


def batch_of(J: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Any:
    """Return a batch of one operator, all that an estimate asks of one."""
    operator = SimpleNamespace(prompt=0, x=x, y=y)
    parts = {"shapes": [J.shape], "operators": [operator], "device": J.device, "dtype": J.dtype}
    return SimpleNamespace(**parts, rmatmat_shared=lambda Y: [J.T @ Y])


def test_the_cosine_of_an_estimate_is_one() -> None:
    """J x = y: a length that is estimated too short makes no cosine above 1."""
    y = torch.ones(8, dtype=torch.float64)
    first = torch.eye(8, dtype=torch.float64)[:, :1]
    found = SimpleNamespace(U=first, S=torch.ones(1, dtype=torch.float64), V=first)
    batch = batch_of(torch.eye(8, dtype=torch.float64), y, y)
    parts = [estimate_contributions(batch, [found], seed=seed)[0] for seed in range(8)]
    assert min(part.share for part in parts) < 0.95
    assert max(part.cosine for part in parts) <= 1


def test_an_estimate_of_a_token_without_influence_is_zero() -> None:
    found = SimpleNamespace(U=torch.zeros(2, 1), S=torch.zeros(1), V=torch.zeros(2, 1))
    (part,) = estimate_contributions(batch_of(torch.zeros(2, 2), torch.ones(2), torch.ones(2)), [found])
    assert (part.share, part.cosine, part.captured) == (0, 0, 1)

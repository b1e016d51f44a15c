"""Contributions sum to the output; all triplets reproduce all of them."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import DetachedNetwork, detach
from detjac_lanczos.reading import contributions, estimate_contributions, stable_ranks
from tests import tiny_models


def truncated(network: DetachedNetwork, k: int) -> list[SimpleNamespace]:
    found = []
    for operator in network.jacobians().operators:
        U, S, Vh = torch.linalg.svd(operator.dense(), full_matrices=False)
        found.append(SimpleNamespace(U=U[:, :k], S=S[:k], V=Vh[:k].T))
    return found


class OneOperator:
    """A batch of one matrix, all that is asked of one."""

    def __init__(self, J: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        self.J, self.shapes, self.device, self.dtype = J, [J.shape], J.device, J.dtype
        self.operators = [SimpleNamespace(prompt=0, x=x, y=y)]

    def __len__(self) -> int:
        return 1

    def cost(self, index: int) -> float:
        return 1.0

    def matmat(self, blocks: list[tuple[int, torch.Tensor]]) -> list[torch.Tensor]:
        return [self.J @ X for _, X in blocks]

    def rmatmat_shared(self, Y: torch.Tensor) -> list[torch.Tensor]:
        return [self.J.T @ Y]


def batch_of(J: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Any:
    return OneOperator(J, x, y)


def test_contributions_sum_to_the_output(network: DetachedNetwork) -> None:
    parts = contributions(network.jacobians(), truncated(network, 3))
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
    (part,) = contributions(batch_of(torch.tensor([3.0, 4.0]).diag(), torch.ones(2), torch.tensor([3.0, 0.0])), [found])
    assert part.share == pytest.approx(5 / 3)
    assert part.cosine == pytest.approx(3 / 5)
    assert part.captured == pytest.approx(16 / 25)


def test_a_token_without_influence_contributes_nothing() -> None:
    found = SimpleNamespace(U=torch.zeros(2, 1), S=torch.zeros(1), V=torch.zeros(2, 1))
    (part,) = contributions(batch_of(torch.zeros(2, 2), torch.ones(2), torch.ones(2)), [found])
    assert (part.share, part.cosine, part.captured) == (0, 0, 1)


def test_cosines_of_an_estimate_are_with_the_output_of_their_own_prompt() -> None:
    """All triplets capture everything: nothing is left to estimate."""
    prompts = detach(tiny_models.loaded(tiny_models.llama()), input_ids=tiny_models.prompt_ids(4, 3))
    batch, triplets = prompts.jacobians(), truncated(prompts, 24)
    found, measured = estimate_contributions(batch, triplets), contributions(batch, triplets)
    assert [part.cosine for part in found] == pytest.approx([part.cosine for part in measured], rel=1e-9)


def test_what_triplets_capture_is_known_where_only_the_length_is_an_estimate(network: DetachedNetwork) -> None:
    batch, triplets = network.jacobians(), truncated(network, 4)
    found, measured = estimate_contributions(batch, triplets), contributions(batch, triplets)
    held, known = ([part.captured * part.share**2 for part in parts] for parts in (found, measured))
    assert held == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_cosine_of_an_estimate_is_one(sign: int) -> None:
    """J x = ±y: a length that is estimated too short makes no cosine beyond ±1."""
    y = torch.ones(8, dtype=torch.float64)
    first = torch.eye(8, dtype=torch.float64)[:, :1]
    found = SimpleNamespace(U=sign * first, S=torch.ones(1, dtype=torch.float64), V=first)
    batch = batch_of(sign * torch.eye(8, dtype=torch.float64), y, y)
    parts = [estimate_contributions(batch, [found], seed=seed)[0] for seed in range(8)]
    assert min(part.share for part in parts) < 0.95
    assert max(sign * part.cosine for part in parts) == 1


def test_an_estimate_of_a_token_without_influence_is_zero() -> None:
    found = SimpleNamespace(U=torch.zeros(2, 1), S=torch.zeros(1), V=torch.zeros(2, 1))
    (part,) = estimate_contributions(batch_of(torch.zeros(2, 2), torch.ones(2), torch.ones(2)), [found])
    assert (part.share, part.cosine, part.captured) == (0, 0, 1)


@pytest.mark.parametrize("measure", [contributions, estimate_contributions, stable_ranks])
def test_triplets_are_one_for_each_operator_of_a_batch(measure: Any, network: DetachedNetwork) -> None:
    batch = network.jacobians()
    triplets = [SimpleNamespace(U=None, S=None, V=None, residuals=None, status="converged")] * len(batch)
    with pytest.raises(InputError, match=rf"{len(batch) - 1} triplets for {len(batch)} operators: give one for each$"):
        measure(batch, triplets[1:])
    with pytest.raises(InputError, match="triplets are a NoneType: give a list"):
        measure(batch, None)
    for wrong in (list(batch), batch[0], None):
        with pytest.raises(InputError, match=f"got a {type(wrong).__name__}: give a JacobianBatch"):
            measure(wrong, triplets)
    for seed in ("a", 2.5) if measure is not contributions else ():
        with pytest.raises(InputError, match=f"seed = {seed!r} is no seed"):
            measure(batch, triplets, seed=seed)

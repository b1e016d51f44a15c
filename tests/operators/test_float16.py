"""float16 ends at 65,504: rows of a sweep may pass that where their product does not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos.operators import detach
from detjac_lanczos.operators.float16 import TRANSPOSED, fitting, scaled, unscaled
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(5)[0]


def test_blocks_of_one_sum_are_fitted_together() -> None:
    small = torch.tensor([[1.0, 0.0], [-3.0, 0.5]]).half()
    for blocks in ([small, 100 * small], [100 * small, small]):
        factors = fitting(blocks, TRANSPOSED)
        largest = torch.stack([scaled(block, factors).abs().amax(0) for block in blocks]).amax(0)
        assert torch.all((largest >= 0.5) & (largest <= 1))
        assert all(torch.equal(unscaled(scaled(block, factors), factors), block) for block in blocks)


def with_massive_activations(dtype: torch.dtype) -> Any:
    """Return one model in any precision: small embeddings, of which the first block makes large values."""
    model = tiny_models.llama(torch.float16)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2.0**-9)
        model.model.layers[0].mlp.down_proj.weight.mul_(2.0**8)
    return model.to(dtype)


def test_products_are_finite_where_rows_on_the_way_would_overflow() -> None:
    half, single = (
        detach((with_massive_activations(dtype), None), input_ids=IDS) for dtype in (torch.float16, torch.float32)
    )
    assert max(single.jacobian(i, target="residual").dense().abs().max() for i in range(5)) > 65504
    assert single.streams.residual[-1].abs().max() < 65504 / 4
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(24, 5, 3, generator=generator), dim=0).half()
    blocks = [(i, unit[:, i]) for i in range(5)]
    exactly = [(i, block.float()) for i, block in blocks]
    one, other = half.jacobians(), single.jacobians()
    pairs: list[tuple[list[Tensor], list[Tensor]]] = [
        (one.matmat(blocks), other.matmat(exactly)),
        (one.rmatmat(blocks), other.rmatmat(exactly)),
        (one.rmatmat_shared(unit[:, 0]), other.rmatmat_shared(unit[:, 0].float())),
        ([one.matmat_sum(blocks)], [other.matmat_sum(exactly)]),
        ([half.jacobian("joint").dense()], [single.jacobian("joint").dense()]),
    ]
    for found, expected in pairs:
        for a, b in zip(found, expected, strict=True):
            assert a.dtype is torch.float16
            assert (a.float() - b).norm() <= 0.01 * b.norm()

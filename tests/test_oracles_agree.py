"""The oracles themselves: exact at x, linear with one slope, and not the ordinary Jacobian."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tests.oracle_structures import blocks_of, frozen_activation
from tests.oracles import Lifted, OracleA, OracleB, derivatives, eager_attention, embeddings_of, run
from tests.tiny_models import DENSE, LENGTH, prompt_ids
from tests.tiny_models.dense import UNGATED

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    (name, freeze) for name in DENSE for freeze in (("gate",) if name.startswith(UNGATED) else ("gate", "up", "half"))
]
IDS = prompt_ids(LENGTH)[0]


def ordinary(model: Any, embeddings: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """The untouched model's streams, in float64 throughout."""
    with Lifted(model.dtype), eager_attention(model), torch.enable_grad():
        return run(model, embeddings.clone().requires_grad_(), **inputs)


@cache
def at_x(name: str, freeze: str = "gate") -> tuple[Any, Tensor, OracleA, dict[str, Tensor]]:
    """A model, its embeddings of the prompt, the oracle there, and the streams of the model untouched."""
    model = DENSE[name](torch.float64)
    x = embeddings_of(model, IDS)
    return model, x, OracleA(model, x, freeze), ordinary(model, x)


def step(x: Tensor, seed: int = 5) -> Tensor:
    """A random δ as long as x."""
    delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return delta * (x.norm() / delta.norm())


def targets(streams: dict[str, Tensor]) -> list[str]:
    return [name for name in streams if not name.startswith("source")]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize(("name", "freeze"), CASES)
def test_the_frozen_model_is_the_model_at_x(name: str, freeze: str) -> None:
    model, _, oracle, expected = at_x(name, freeze)
    found = oracle.streams
    assert set(found) == set(expected)
    for stream in expected:
        assert relative(found[stream], expected[stream]) <= 1e-12, stream
    with torch.no_grad():
        # Transformers itself rounds to float32 here and there.
        assert relative(found["logits"], model(input_ids=torch.tensor([IDS]), use_cache=False).logits) <= 1e-6


@pytest.mark.parametrize(("name", "freeze"), CASES)
def test_the_pinned_model_moves_by_j_delta(name: str, freeze: str) -> None:
    model, x, oracle, free = at_x(name, freeze)
    delta = step(x)
    change = OracleB(model, x, freeze).change(delta)
    unfrozen = derivatives(free["source.embeddings"], {name: free[name] for name in targets(free)}, delta)
    for target, product in oracle.products("embeddings", targets(change), delta).items():
        assert relative(change[target], product) <= 1e-11, target
        assert product.norm() >= 0.05 * oracle.streams[target].norm(), target
        assert relative(product, unfrozen[target]) >= 0.05, target


@pytest.mark.parametrize("name", DENSE)
def test_branches_are_what_the_stream_gains(name: str) -> None:
    model, _, _, streams = at_x(name)
    for index, block in enumerate(blocks_of(model)):
        x, attention, mlp = (streams[f"{role}.{index}"] for role in ("source", "attention", "mlp"))
        if name == "OPT post-norm":
            expected = block.final_layer_norm(block.self_attn_layer_norm(x + attention) + mlp)
        else:
            expected = x + attention + mlp
        assert relative(streams[f"layer.{index}"], expected) <= 1e-14


@pytest.mark.parametrize("name", DENSE)
def test_columns_of_j_agree_with_its_products(name: str) -> None:
    _, _, oracle, _ = at_x(name)
    for source in ("embeddings", 0, 2):
        delta = step(oracle.streams[f"source.{source}"][0].detach())
        for target, product in oracle.products(source, ("layer.2", "logits"), delta).items():
            jacobian = oracle.jacobian(source, target, LENGTH - 2)
            assert relative(product[LENGTH - 2], torch.einsum("oid,id->o", jacobian, delta)) <= 1e-12


@pytest.mark.parametrize("name", DENSE)
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    model = DENSE[name](torch.float64)
    pads = 3
    x = embeddings_of(model, [0] * pads + IDS)
    mask = torch.tensor([[0] * pads + [1] * LENGTH])
    padded = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    delta = step(x)
    expected, found = OracleA(model, x[pads:]), OracleA(model, x, **padded)
    change = OracleB(model, x, **padded).change(delta)
    padded_products = found.products("embeddings", targets(change), delta)
    for target, product in expected.products("embeddings", targets(change), delta[pads:]).items():
        assert found.streams[target].isfinite().all(), target
        assert relative(found.streams[target][:, pads:], expected.streams[target]) <= 1e-12, target
        assert relative(padded_products[target][pads:], product) <= 1e-12, target
        assert relative(change[target][pads:], product) <= 1e-11, target


@pytest.mark.parametrize(
    ("name", "freeze"), [("Llama", "gate"), ("Llama", "up"), ("Llama", "half"), ("OPT plain", "gate")]
)
def test_a_token_whose_activations_are_exactly_zero(name: str, freeze: str) -> None:
    model = DENSE[name](torch.float64)
    x = embeddings_of(model, IDS)
    with torch.no_grad():
        x[0] = -model.model.decoder.embed_positions.weight[2] if name == "OPT plain" else 0
    delta = step(x)
    oracle, change = OracleA(model, x, freeze), OracleB(model, x, freeze).change(delta)
    assert torch.all(oracle.streams["mlp.0"][0, 0] == 0)
    for target, product in oracle.products("embeddings", targets(change), delta).items():
        assert relative(change[target], product) <= 1e-11, target


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu"])
def test_smooth_activations_have_their_limit_at_zero(name: str) -> None:
    z = torch.tensor([0.0, 1e-9, -1e-9, 1.5], dtype=torch.float64)
    ratio = slopes(ACT2FN[name], z)
    assert torch.allclose(ratio[:3], torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-8)
    assert torch.allclose(ratio[3] * z[3], ACT2FN[name](z)[3], rtol=1e-15)


@pytest.mark.parametrize("name", ["relu", "relu2"])
def test_rectifiers_are_shut_at_zero(name: str) -> None:
    z = torch.tensor([0.0, -1.0, 2.0], dtype=torch.float64)
    assert torch.equal(slopes(ACT2FN[name], z), torch.tensor([0.0, 0.0, {"relu": 1.0, "relu2": 2.0}[name]]).double())


def slopes(act: nn.Module | Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The frozen ratio as reverse mode sees it."""
    z = z.clone().requires_grad_()
    value = frozen_activation(act, Tensor.detach, z)
    assert torch.allclose(value, act(z), rtol=1e-15)
    return torch.autograd.grad(value.sum(), z)[0]

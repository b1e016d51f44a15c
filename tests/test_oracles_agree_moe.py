"""The oracles of the families with routed experts against each other, and models in which routing matters."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracle_structures import blocks_of
from tests.oracles import Detach, Lifted, OracleA, OracleB, eager_attention, embeddings_of, errors, run
from tests.oracles_moe import clamped_product
from tests.tiny_models import LENGTH, prompt_ids
from tests.tiny_models.moe import MOE

pytestmark = pytest.mark.usefixtures("one_thread")

FREEZES = ("gate", "up", "half")


@pytest.fixture(scope="module", params=MOE)
def model(request: pytest.FixtureRequest) -> Any:
    model = MOE[request.param](torch.float64)
    model.set_experts_implementation("eager")
    return model


@pytest.fixture(scope="module")
def x(model: Any) -> Tensor:
    return embeddings_of(model, prompt_ids(LENGTH)[0])


@pytest.mark.parametrize("freeze", FREEZES)
def test_a_frozen_model_says_at_x_what_the_model_says(model: Any, x: Tensor, freeze: str) -> None:
    with torch.no_grad(), untouched(model):
        expected = run(model, x)
    frozen = OracleB(model, x, freeze).at_x
    assert frozen.keys() == expected.keys()
    for name in frozen:
        assert errors(frozen[name], expected[name][0])[1] < 1e-12, name


@pytest.mark.parametrize("freeze", FREEZES)
def test_the_pinned_model_moves_by_the_jacobian(model: Any, x: Tensor, freeze: str) -> None:
    delta = like(x)
    derivative, change = OracleA(model, x, freeze), OracleB(model, x, freeze).change(delta)
    targets = [f"{kind}.{index}" for kind in ("attention", "mlp", "layer") for index in range(len(blocks_of(model)))]
    for target in ["residual", "output", "logits", *targets]:
        for position in (4, LENGTH - 1):
            moved = torch.tensordot(derivative.jacobian("embeddings", target, position), delta)
            assert errors(moved, change[target][position])[1] < 1e-11, (target, position)


def test_no_two_linear_maps_are_one(model: Any, x: Tensor) -> None:
    """Three choices of the frozen factor and the ordinary Jacobian, at the last logits."""
    jacobians = [OracleA(model, x, freeze).jacobian("embeddings", "logits", LENGTH - 1) for freeze in FREEZES]
    with untouched(model):
        jacobians.append(torch.autograd.functional.jacobian(lambda e: run(model, e)["logits"][0, -1], x))
    for one, other in combinations(jacobians, 2):
        assert errors(one, other)[0] > 0.05


@pytest.mark.parametrize("freeze", FREEZES)
def test_one_factor_moves_and_routers_do_not(model: Any, x: Tensor, freeze: str) -> None:
    """No derivative by the weights of a frozen factor nor of a router, in experts and in the gated MLPs beside them."""
    logits = OracleA(model, x, freeze).streams["logits"]
    weights = {name: weight for name, weight in model.named_parameters() if "layers" in name}
    gradients = dict(zip(weights, torch.autograd.grad(logits.sum(), weights.values(), allow_unused=True), strict=True))
    frozen = {"gate": {"gate"}, "up": {"up"}, "half": set()}[freeze]
    for name, gradient in gradients.items():
        if "experts.gate_up_proj" in name:
            for factor, part in zip(("gate", "up"), halves(model, gradient), strict=True):
                assert bool((part == 0).all()) == (factor in frozen), name
        elif name.endswith(("gate_proj.weight", "up_proj.weight")):
            factor = name.split(".")[-2].removesuffix("_proj")
            assert (gradient is None) == (factor in frozen), name
        elif "router" in name or name.endswith("mlp.gate.weight"):
            assert gradient is None, name


def test_tokens_part_and_some_expert_stays_idle(model: Any, x: Tensor) -> None:
    choices = chosen(model, x)
    used = [layer.any(dim=0).sum() for layer in choices]
    assert all(len(layer.unique(dim=0)) > 2 for layer in choices)
    assert any(count < layer.shape[1] for count, layer in zip(used, choices, strict=True))


def test_choices_of_experts_are_no_near_ties(model: Any, x: Tensor) -> None:
    choices = chosen(model, x)
    for seed in range(4):
        nearby = chosen(model, x + 1e-3 * like(x, seed))
        assert all(torch.equal(a, b) for a, b in zip(choices, nearby, strict=True))


def test_a_step_as_long_as_x_would_choose_other_experts(model: Any, x: Tensor) -> None:
    there = chosen(model, x + like(x))
    assert not any(torch.equal(a, b) for a, b in zip(chosen(model, x), there, strict=True))


@pytest.mark.parametrize("name", MOE)
def test_float32_chooses_the_same_experts(name: str) -> None:
    single, double = (MOE[name](dtype) for dtype in (torch.float32, torch.float64))
    choices = []
    for model in (single, double):
        model.set_experts_implementation("eager")
        choices.append(chosen(model, embeddings_of(model, prompt_ids(LENGTH)[0])))
    assert all(torch.equal(a, b) for a, b in zip(*choices, strict=True))


def test_gpt_oss_clamps_some_entries_of_both_factors() -> None:
    model = MOE["gpt-oss"](torch.float64)
    model.set_experts_implementation("eager")
    for block in blocks_of(model):
        block.mlp.experts.register_forward_pre_hook(assert_clamps)
    model(torch.tensor(prompt_ids(LENGTH)))


def test_a_saturated_factor_of_gpt_oss_has_no_slope() -> None:
    z, u = (torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([3.0, 0.5, -2], [0.5, -3, 3]))
    c = torch.tensor([1, 0.5, -2], dtype=torch.float64)
    glu = c * torch.sigmoid(1.7 * c)
    product = {freeze: clamped_product(1.0, 1.7, freeze, Detach(), z, u) for freeze in ("gate", "up")}
    by_gate = torch.autograd.grad(product["gate"].sum(), (z, u), allow_unused=True)
    by_up = torch.autograd.grad(product["up"].sum(), (z, u), allow_unused=True)
    assert by_gate[0] is None and by_up[1] is None
    torch.testing.assert_close(by_gate[1], glu * torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(by_up[0], glu / z.detach() * torch.tensor([1.5, 0, 2]))


@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V3 full queries"])
def test_correction_biases_change_choices_in_deepseek(name: str) -> None:
    model = MOE[name](torch.float64)
    model.set_experts_implementation("eager")
    x = embeddings_of(model, prompt_ids(LENGTH)[0])
    corrected = chosen(model, x)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()
    assert not torch.equal(corrected[0], chosen(model, x)[0])


def halves(model: Any, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and up parts of the experts' joint weight, or of its bias."""
    kind = type(model).__name__
    if kind == "GptOssForCausalLM":
        return gate_up[..., 0::2], gate_up[..., 1::2]
    gate, up = gate_up.tensor_split(2, dim=-1 if kind == "Llama4ForCausalLM" else -2)
    return gate, up


def assert_clamps(experts: Any, args: tuple[Tensor, ...]) -> None:
    x, choices, _ = args
    gate_up = torch.einsum("nkio, ni -> nko", experts.gate_up_proj[choices], x) + experts.gate_up_proj_bias[choices]
    gate, up = gate_up[..., 0::2], gate_up[..., 1::2]
    for clamped in (gate > experts.limit, up > experts.limit, up < -experts.limit):
        assert 0.02 < clamped.double().mean() < 0.5


def chosen(model: Any, x: Tensor) -> list[Tensor]:
    """Who goes where, for every router of the model: (n, E), true where a row is sent to an expert."""
    layers: list[Tensor] = []

    def on_router(_: Any, args: Any, out: tuple[Tensor, ...]) -> None:
        if len(out) == 2:  # Llama 4: a score for every expert, zero for those not chosen
            layers.append(out[0] > 0)
        else:
            logits, _, choices = out
            layers.append(torch.zeros_like(logits, dtype=torch.bool).scatter(1, choices, True))

    routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
    handles = [router.register_forward_hook(on_router) for router in routers]
    with torch.no_grad():
        run(model, x)
    for handle in handles:
        handle.remove()
    return layers


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """The model as it is, with its eager attention and without roundings to float32."""
    with eager_attention(model), Lifted(model.dtype):
        yield


def like(x: Tensor, seed: int = 0) -> Tensor:
    """Random numbers of x's shape and size."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return noise * (x.norm() / noise.norm())

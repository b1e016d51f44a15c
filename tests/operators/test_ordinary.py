"""The ordinary Jacobian, by forward and reverse mode on the copy, against reverse mode through the untouched model."""

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import DetachedNetwork, attention, detach, layer, mlp, probe
from detjac_lanczos.solvers import svd
from detjac_lanczos.solvers.testing import OperatorTestCase
from tests import tiny_models
from tests.oracles import Lifted, OracleA, embeddings_of, errors, run
from tests.tiny_models import moe

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (tiny_models.LENGTH, 5)
BAR = 1e-11


class Untouched(OracleA):
    """Reverse mode through the model as it is, its own attention and all; nothing but roundings is changed."""

    def __init__(self, model: Any, embeddings: Tensor) -> None:
        with Lifted(model.dtype), torch.enable_grad():
            self.streams = run(model, embeddings.clone().requires_grad_())


@cache
def case(make: str) -> tuple[DetachedNetwork, list[Untouched]]:
    model = getattr(tiny_models, make)(bias=True)
    ids = tiny_models.prompt_ids(*LENGTHS)
    oracles = [Untouched(model, embeddings_of(model, tokens)) for tokens in ids]
    return detach(tiny_models.loaded(model), input_ids=ids), oracles


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Cases do not outlive the file: all that lives is walked through whenever garbage is collected."""
    yield
    case.cache_clear()


def probe_rows() -> Tensor:
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def targets(blocks: int) -> Iterator[tuple[str, Any, int]]:
    """Name of the stream in the oracle, the library's place, and the first source that lies behind it."""
    yield "output", "output", blocks
    yield "residual", "residual", blocks
    yield "logits", "logits", blocks
    yield "output", probe(probe_rows()), blocks
    for index in range(blocks):
        yield f"layer.{index}", layer(index), index + 1
        yield f"attention.{index}", attention(index), index + 1
        yield f"mlp.{index}", mlp(index), index + 1


@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_every_source_and_target_in_either_mode(make: str) -> None:
    network, oracles = case(make)
    for prompt, (oracle, position) in enumerate(zip(oracles, (11, 2), strict=True)):
        for name, place, behind in targets(network.blocks):
            cotangents, sources = getattr(place, "rows", None), ["embeddings", *range(behind)]
            for source, whole in zip(sources, oracle.jacobians(sources, name, position, cotangents), strict=True):
                expected = whole[:, : position + 1]
                J = network.jacobian(
                    (prompt, "joint"),
                    source="embeddings" if source == "embeddings" else layer(int(source)),
                    target=place,
                    position=position,
                    frozen=False,
                )
                X = torch.randn(J.shape[1], 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
                assert max(errors(J.matmat(X), expected.flatten(1) @ X)) <= BAR, (name, source)
                assert max(errors(J.dense(), expected.flatten(1))) <= BAR, (name, source)
                value = oracle.streams[name][0, position].detach()
                value = value if cotangents is None else cotangents @ value
                assert (J.y - value).norm() <= BAR * value.norm()
                assert torch.equal(J.x, network.inputs(J.source, prompt)[: position + 1].flatten())


@pytest.mark.parametrize("name", ["Gemma 2", "GPT-2", "GPT-NeoX", "OPT post-norm", "Qwen3-MoE", "gpt-oss", "Llama 4"])
def test_logits_of_other_families(name: str) -> None:
    """Softcaps, position tables, projected embeddings, routed experts: reverse mode through the model as it is."""
    makers = tiny_models.DENSE | {"Qwen3-MoE": moe.qwen3_moe, "gpt-oss": moe.gpt_oss, "Llama 4": moe.llama4}
    model = makers[name](torch.float64)
    (ids,) = tiny_models.prompt_ids(6)
    network = detach(tiny_models.loaded(model), input_ids=ids)
    model.config._experts_implementation = "eager"  # its grouped products take no float64
    x = embeddings_of(model, ids).requires_grad_()
    with Lifted(model.dtype):
        mask = torch.ones(1, len(ids), dtype=torch.long)
        logits = model(inputs_embeds=x[None], attention_mask=mask, use_cache=False).logits[0, 4]
    J = network.jacobian("joint", target="logits", position=4, frozen=False)
    expected = torch.stack([torch.autograd.grad(y, x, retain_graph=True)[0] for y in logits])[:, :5].flatten(1)
    X = torch.randn(J.shape[1], 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert max(errors(J.matmat(X), expected @ X)) <= BAR
    assert max(errors(J.dense(), expected)) <= BAR


@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_batches_of_prompts_and_positions_are_each_operator_alone(make: str) -> None:
    network, oracles = case(make)
    batch = network.jacobians(frozen=False)
    J = batch.operators[3]
    for product in (J.matmat(torch.eye(24, dtype=J.dtype)), J.rmatmat(torch.eye(24, dtype=J.dtype)).T):
        assert max(errors(product, oracles[0].jacobian("embeddings", "output", -1)[:, 3])) <= BAR
    generator = torch.Generator().manual_seed(3)
    chosen = [(14, 1), (0, 3), (5, 2), (11, 4), (12, 1)]
    X = [(i, torch.randn(24, b, generator=generator, dtype=torch.float64)) for i, b in chosen]
    for products, alone in ((batch.matmat(X), "matmat"), (batch.rmatmat(X), "rmatmat")):
        for found, (i, block) in zip(products, X, strict=True):
            expected = getattr(batch.operators[i], alone)(block)
            assert (found - expected).norm() <= 1e-13 * expected.norm()
    Y = X[1][1]
    for found, J in zip(batch.rmatmat_shared(Y), batch.operators, strict=True):
        assert (found - J.rmatmat(Y)).norm() <= 1e-13 * found.norm()
    assert [batch.cost(i) for i in (0, 12)] == [12, 5]
    assert batch.shared_cost() == 17
    assert batch.matmat([]) == []


@pytest.mark.parametrize("make", ["llama", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precisions_are_adjoint(make: str, dtype: torch.dtype) -> None:
    model = getattr(tiny_models, make)(dtype)
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(*LENGTHS))
    generator = torch.Generator().manual_seed(1)
    for target in ("output", "logits", mlp(1)):
        J = network.jacobian(3, target=target, frozen=False)
        assert J.dtype is dtype
        v, u = (torch.randn(rows, 4, generator=generator).to(dtype) for rows in reversed(J.shape))
        forwards, backwards = J.matmat(v), J.rmatmat(u)
        assert forwards.dtype is backwards.dtype is dtype
        gap = ((forwards.double() * u).sum(0) - (v * backwards.double()).sum(0)).abs()
        # Unlike a frozen sweep, the two modes differentiate softmax and norms by other operations: 2 · c ε √rows.
        bar = 20 * torch.finfo(dtype).eps * 12**0.5 * forwards.double().norm(dim=0) * u.double().norm(dim=0)
        assert torch.all(gap <= bar), (str(target), float((gap / bar).max()))


def test_it_is_not_the_detached_one_and_says_so() -> None:
    network, _ = case("llama")
    ordinary, detached = network.jacobian(0, frozen=False), network.jacobian(0)
    assert (ordinary.dense() - detached.dense()).norm() > 0.1 * detached.dense().norm()
    assert detached.reconstruction.norm_error < 1e-13
    found = ordinary.reconstruction
    assert found.norm_error > 0.1
    assert abs(found.offset_share - found.norm_error) < 1e-15
    assert torch.equal(ordinary.offset, found.y - found.estimate)
    assert torch.equal(ordinary.x, detached.x)
    assert torch.equal(ordinary.y, detached.y)
    assert detached.definition["route"] == "frozen"
    assert (ordinary.definition["route"], ordinary.definition["freeze"]) == ("autograd", "nothing")
    assert "OrdinaryJacobian" in repr(ordinary)


@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_its_estimate_is_the_sum_over_the_tokens(make: str) -> None:
    network, oracles = case(make)
    J = network.jacobian((1, "joint"), position=3, frozen=False)
    expected = torch.einsum(
        "omd,md->o", oracles[1].jacobian("embeddings", "output", 3)[:, :4], network.inputs(0, 1)[:4]
    )
    assert max(errors(J.reconstruction.estimate, expected)) <= BAR


def test_that_of_the_last_norm_alone_annihilates_the_input() -> None:
    """An RMS norm without epsilon is homogeneous of degree 0: its ordinary Jacobian times its input is zero."""
    model = tiny_models.llama(rms_norm_eps=0.0)
    with torch.no_grad():
        for branch in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[2].get_submodule(branch).weight.zero_()
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(tiny_models.LENGTH))

    def estimate(target: Any) -> Tensor:
        J = network.jacobian("joint", source=layer(2), target=target, frozen=False)
        return J.reconstruction.estimate

    assert float(estimate("output").norm() / network.streams.output[-1].norm()) < 1e-13
    torch.testing.assert_close(estimate("residual"), network.inputs(2, 0)[-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(estimate(layer(2)), estimate("residual"))


def test_the_caller_s_model_stays_as_it_was() -> None:
    model = tiny_models.llama()
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(*LENGTHS))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    J = network.jacobian("joint", frozen=False)
    J.matmat(J.x[:, None])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation != "detjac_observed"


def test_what_cannot_be_is_one_clear_line() -> None:
    network, _ = case("llama")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": layer(2), "target": layer(1)}, "lies before"),
        ({"target": probe(torch.ones(2, 5))}, "width 5"),
        ({"token": 5, "position": 4}, "comes after position"),
        ({"token": (2, "joint")}, "prompt 2"),
        ({"token": (1, 0), "position": 7}, "position 7"),
        ({"target": mlp(3)}, "layer 3"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            network.jacobian(**options, frozen=False)


@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_products_inside_inference_mode_and_without_gradients(make: str) -> None:
    network, _ = case(make)
    J = network.jacobian(2, frozen=False)
    Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = J.matmat(Y), J.rmatmat(Y)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            assert torch.equal(J.matmat(Y), expected[0])
            assert torch.equal(J.rmatmat(Y), expected[1])
    assert all(parameter.grad is None for parameter in network.model.parameters())


class TestContract(OperatorTestCase):
    """The solver's contract, and its leading values."""

    def create_operator(self) -> Any:
        return case("gemma")[0].jacobian((1, 2), frozen=False)

    def create_dense(self) -> Tensor:
        return case("gemma")[1][1].jacobian("embeddings", "output", -1)[:, 2]


def test_svd_of_all_tokens_jointly() -> None:
    network, oracles = case("llama")
    result = svd(network.jacobian("joint", frozen=False), k=4, tol=1e-8)
    assert result.converged
    expected = torch.linalg.svdvals(oracles[0].jacobian("embeddings", "output", -1).flatten(1))[:4]
    assert (result.S - expected).abs().max() <= 1e-10 * expected[0]


def test_a_probe_across_the_output_is_served_in_single_precision() -> None:
    """Its value is nothing but rounding, which no two passes share."""
    network = detach(tiny_models.loaded(tiny_models.llama(torch.float32)), input_ids=tiny_models.prompt_ids(6))
    J = network.jacobian("joint", frozen=False)
    y = J.y.double() / J.y.double().norm()
    row = torch.randn(1, len(y), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = (row - (row @ y) * y).float()
    across = network.jacobian("joint", target=probe(row), frozen=False)
    X = torch.randn(across.shape[1], 3, generator=torch.Generator().manual_seed(2))
    for found, expected in ((across.dense(), row @ J.dense()), (across.matmat(X), row @ J.matmat(X))):
        assert float((found - expected).norm() / expected.norm()) < 1e-4

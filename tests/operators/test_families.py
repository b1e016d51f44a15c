"""Every declared family against reverse mode through detached modules (oracle A) and pinned modules (oracle B)."""

import copy
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.families import FAMILIES
from detjac_lanczos.operators import DetachedNetwork, attention, detach, expert, layer, mlp
from tests import tiny_models
from tests.every_block import every_block, unchecked
from tests.oracles import OracleA, OracleB, embeddings_of, errors
from tests.tiny_models.dense import DENSE, UNGATED, gpt2, llama
from tests.tiny_models.moe import MOE

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS: dict[str, Callable[[torch.dtype], Any]] = DENSE | MOE
RECONSTRUCTION = {torch.float64: 1e-13, torch.float32: 1e-6}
BLOCKS = 3
TARGETS: dict[str, Any] = {"output": "output", "residual": "residual", "logits": "logits"}
for _l in range(BLOCKS):
    TARGETS |= {f"layer.{_l}": layer(_l), f"attention.{_l}": attention(_l), f"mlp.{_l}": mlp(_l)}
KINDS = {kind: TARGETS[kind] for kind in ("output", "residual", "logits", "layer.1", "attention.2", "mlp.2")}
"""One target of each kind, for what sums of the same sweeps show."""
EVERY_FREEZE = ("Llama", "Phi-3", "Qwen3-MoE", "gpt-oss", "DeepSeek-V3", "Llama 4")
"""One for each way to hold a gated product: apart, fused, in experts, clamped, shared beside routed, scored before."""
RULES = {name: ("gate", "up", "half") if name in EVERY_FREEZE else ("gate",) for name in MODELS}
CASES = [(name, freeze) for name, rules in RULES.items() for freeze in rules]
OTHER_PRODUCTS = [name for name in MODELS if name not in EVERY_FREEZE and not name.startswith(UNGATED)]
"""Families that hold a gated product as one of the above does: there "half", which runs both linear maps of a product,
meets the oracle that needs no Jacobian."""


def ways(name: str, freeze: str) -> tuple[str, ...]:
    """Factors as captured, and (under the rule that freezes most) those that are made again in every sweep."""
    return ("keep", "rebuild") if freeze == RULES[name][-1] else ("keep",)


@cache
def tokens() -> list[int]:
    return tiny_models.prompt_ids(tiny_models.LENGTH)[0]


def sources(target: str) -> list[tuple[Any, Any]]:
    """The library's source and the oracle's, for a target that lies behind it."""
    last = int(target.split(".")[1]) if "." in target else BLOCKS - 1
    return [("embeddings", "embeddings"), *((layer(index), index) for index in range(last + 1))]


def outer_sources(target: str) -> list[tuple[Any, Any]]:
    """The embeddings, and block 1 where the target lies behind it."""
    return sources(target)[:1] + sources(target)[2:3]


@cache
def case(name: str, freeze: Any, dtype: torch.dtype, way: Any = "keep") -> tuple[Any, DetachedNetwork]:
    model = MODELS[name](dtype)
    with every_block(way):
        return model, detach((model, None), input_ids=[tokens(), tokens()[3:8]], freeze=freeze, memory="1GB")


@cache
def in_float32_from_outside(name: str, freeze: str) -> dict[tuple[str, Any], Tensor]:
    """Reverse mode's J of a target of each kind by the oracle's outer sources, at the last position."""
    model, _ = case(name, freeze, torch.float32)
    oracle = OracleA(model, embeddings_of(model, tokens()), freeze)
    found = {}
    for target in KINDS:
        theirs = [source for _, source in outer_sources(target)]
        found |= zip(((target, s) for s in theirs), oracle.jacobians(theirs, target, len(tokens()) - 1), strict=True)
    return found


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Cases do not outlive the file: all that lives is walked through whenever garbage is collected."""
    yield
    for kept in (case, in_float32_from_outside):
        kept.cache_clear()


def test_every_declared_family_has_a_tiny_model() -> None:
    networks = (case(name, RULES[name][0], torch.float64)[1] for name in MODELS)
    served = {network.family.name.split(" in ")[0] for network in networks}
    assert served == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", MODELS)
def test_the_input_is_what_its_definition_says(name: str) -> None:
    model, network = case(name, RULES[name][0], torch.float64)
    table = model.get_input_embeddings().weight.detach()[tokens()]
    rows = "the rows of the embedding table"
    said = {rows: 1.0, f"{rows} times sqrt(hidden size)": table.shape[1] ** 0.5}
    expected = said[network.jacobian(0).definition["input"]] * table
    torch.testing.assert_close(network.streams.embeddings[: len(table)], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "freeze"), CASES)
def test_transposed_sweeps_agree_with_reverse_mode(name: str, freeze: str) -> None:
    model, network = case(name, freeze, torch.float64)
    oracle = OracleA(model, embeddings_of(model, tokens()), freeze)
    n = len(tokens())
    for target, place in TARGETS.items():
        for position in (n - 1, n // 2) if target == "output" else (n - 1,):
            ours, theirs = zip(*sources(target), strict=True)
            for source, expected in zip(ours, oracle.jacobians(theirs, target, position), strict=True):
                assert torch.all(expected[:, position + 1 :] == 0)
                expected = expected[:, : position + 1]
                difference = transposed_products(network, source, place, position) - expected
                # Behind a window that has closed both are exactly zero.
                for size in (Tensor.norm, torch.amax):
                    assert torch.all(size(difference.abs(), dim=(0, 2)) <= 1e-11 * size(expected.abs(), dim=(0, 2))), (
                        target,
                        source,
                    )


@pytest.mark.parametrize(
    "act",
    ["gelu_10", "gelu_accurate", "hardswish", "leaky_relu", "linear", "mish", "prelu", "relu6", "tanh", "xielu"],
)
@pytest.mark.parametrize(("make", "freeze"), [(gpt2, "gate"), (llama, "half")])
def test_activations_with_a_ratio_agree_with_reverse_mode(make: Any, freeze: Any, act: str) -> None:
    model = make(torch.float64, **{"activation_function" if make is gpt2 else "hidden_act": act})
    network = detach((model, None), input_ids=tokens(), freeze=freeze)
    expected = OracleA(model, embeddings_of(model, tokens()), freeze).jacobian(
        "embeddings", "output", len(tokens()) - 1
    )
    assert max(errors(network.jacobian("joint").dense(), expected.flatten(1))) <= 1e-11


@pytest.mark.parametrize(("name", "freeze", "way"), [(*case, way) for case in CASES for way in ways(*case)])
def test_so_do_they_in_float32(name: str, freeze: str, way: str) -> None:
    """All tokens side by side: one token's share may be so small that reverse mode itself is further off than 2e-6.

    Every block is entered, and left, in float64; rounding is seen from the embeddings and from block 1.
    """
    _, network = case(name, freeze, torch.float32, way)
    expected = in_float32_from_outside(name, freeze)
    for target, place in KINDS.items():
        for source, theirs in outer_sources(target):
            found = transposed_products(network, source, place, len(tokens()) - 1)
            assert max(errors(found, expected[target, theirs])) <= 2e-6, (target, source)


@pytest.mark.parametrize(("name", "freeze"), CASES)
def test_single_tokens_in_float32_are_as_accurate_as_reverse_mode(name: str, freeze: str) -> None:
    """Against reverse mode in float64 of the same weights: rounding in the forward pass is in both in float32.

    A sweep in float32 adds less: with the factors of a float64 pass, rounded, it keeps the bar on every token.
    """
    model, network = case(name, freeze, torch.float32)
    double = copy.deepcopy(model).double()
    with unchecked():  # as such a network is elsewhere
        swept = with_factors_of(network, detach((double, None), input_ids=[tokens(), tokens()[3:8]], freeze=freeze))
    single, truth = (OracleA(m, embeddings_of(m, tokens()), freeze) for m in (model, double))
    last = len(tokens()) - 1
    ours = reverse = rounding = 0.0
    for target, source in (("output", "embeddings"), ("mlp.2", 1), ("attention.2", "embeddings"), ("layer.1", 1)):
        place, at = TARGETS[target], source if isinstance(source, str) else layer(source)
        expected, theirs = (oracle.jacobian(source, target, last) for oracle in (truth, single))
        found, again = (transposed_products(one, at, place, last) for one in (network, swept))
        for token in range(last + 1):
            if expected[:, token].any():
                ours = max(ours, *errors(found[:, token].double(), expected[:, token]))
                rounding = max(rounding, *errors(again[:, token].double(), expected[:, token]))
                reverse = max(reverse, *errors(theirs[:, token].double(), expected[:, token]))
    assert ours <= max(2e-6, 1.5 * reverse), (ours, reverse)
    assert rounding <= 2e-6


def transposed_products(network: DetachedNetwork, source: Any, target: Any, position: int) -> Tensor:
    """(d_out, n, d_in): J of every token up to a position, by transposed products."""
    batch = network.jacobians(list(range(position + 1)), source=source, target=target, position=position)
    return torch.stack(batch.rmatmat_shared(torch.eye(batch.shapes[0][0], dtype=network.dtype))).permute(2, 0, 1)


def with_factors_of(network: DetachedNetwork, other: DetachedNetwork) -> DetachedNetwork:
    """The same weights and streams; frozen factors of another network, rounded to this one's dtype."""
    factors = {
        name: value.to(network.dtype) if value.is_floating_point() else value
        for name, value in other.coefficients.items()
    }
    loaded = tiny_models.loaded(network.model)
    return DetachedNetwork(loaded, network.family, network.prompts, network.freeze, factors, network.streams)


@pytest.mark.parametrize(
    ("name", "freeze", "way"), [*((*case, "keep") for case in CASES), *((n, "half", "rebuild") for n in OTHER_PRODUCTS)]
)
def test_forward_sweeps_are_the_adjoint_and_the_pinned_model_is_affine(name: str, freeze: str, way: str) -> None:
    model, network = case(name, freeze, torch.float64, way)
    x = embeddings_of(model, tokens())
    oracle = OracleB(model, x, freeze)
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(3, *x.shape, generator=generator, dtype=x.dtype)
    deltas *= (torch.tensor([1e-3, 1.0, 1e3]) * x.norm() / deltas.norm(dim=(1, 2)))[:, None, None]
    changes = [oracle.change(delta) for delta in deltas]
    steps = deltas.flatten(1).T
    for target, place in TARGETS.items():
        J = network.jacobian("joint", target=place)
        found, expected = J.matmat(steps), torch.stack([change[target][-1] for change in changes], dim=1)
        # f(x + δ) − f(x) of a small δ keeps the rounding of f itself, ε‖f‖.
        bars = 1e-11 * found.norm(dim=0) + 1e-14 * oracle.at_x[target][-1].norm()
        assert torch.all((found - expected).norm(dim=0) <= bars), target
        u = torch.randn(J.shape[0], generator=generator, dtype=x.dtype)
        gaps = (u @ found - J.rmatmat(u[:, None])[:, 0] @ steps).abs()
        assert torch.all(gaps <= 1e-13 * found.norm(dim=0) * u.norm()), target


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "freeze"), CASES)
def test_sums_of_products_and_offset_reconstruct(name: str, freeze: str, dtype: torch.dtype) -> None:
    model, network = case(name, freeze, dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for prompt in range(2):
        for target, place in KINDS.items():
            if dtype is torch.float32 and "." in target:
                continue
            if prompt and "." in target:
                continue
            for source, _ in outer_sources(target):
                J = network.jacobian((prompt, "joint"), target=place, source=source)
                assert J.reconstruction.norm_error <= RECONSTRUCTION[dtype], (prompt, target, source)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["Qwen3-MoE", "Mixtral", "GraniteMoe", "gpt-oss", "DeepSeek-V3"])
def test_a_dropped_expert_is_one_whose_output_is_zero(name: str) -> None:
    model, network = case.__wrapped__(name, "gate", torch.float64)  # its own: an expert is changed below
    last = len(tokens()) - 1
    routes = {tuple(key.split(".")): value for key, value in network.coefficients.items() if key.endswith(".positions")}
    used = next(int(key[-2]) for key, value in routes.items() if key[1] == "2" and last in value)
    whole = network.jacobian("joint", target=mlp(2)).dense()
    found = network.replace(drop=[expert(2, used)]).jacobian("joint", target=mlp(2))
    dense, offset = found.dense(), found.offset
    route = next(key for key in network.coefficients if key.endswith(f".experts.{used}.weight"))
    for fixed in (route, route.replace(".weight", ".positions")):
        with pytest.raises(InputError, match=rf"cannot replace {re.escape(fixed)}: folding moved it"):
            network.replace({fixed: 2 * network.coefficients[fixed]})
    in_use = sorted(int(key[-2]) for key in routes if key[1] == "2")
    with pytest.raises(InputError, match=f"goes to expert 99 of block 2; they go to {', '.join(map(str, in_use))}$"):
        network.replace(drop=expert(2, 99))
    experts = next(m for path, m in model.named_modules() if ".layers.2." in path and path.endswith(".experts"))
    experts.down_proj.data[used] = 0
    if hasattr(experts, "down_proj_bias"):
        experts.down_proj_bias.data[used] = 0
    changed = DetachedNetwork(
        tiny_models.loaded(model), network.family, network.prompts, "gate", network.coefficients, network.streams
    )
    other = changed.jacobian("joint", target=mlp(2))
    assert (dense - other.dense()).norm() <= 1e-13 * other.dense().norm()
    assert (offset - other.offset).norm() <= 1e-13 * (1 + other.offset.norm())
    assert (dense - whole).norm() > 1e-3 * whole.norm()

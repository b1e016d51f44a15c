"""A network whose model has moved on serves the Jacobians of its own pass, or refuses: never those of neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detjac_lanczos as dl
from detjac_lanczos.errors import ModelError
from detjac_lanczos.models.unmoved import Unmoved, weights_in_use
from tests import tiny_models
from tests.tiny_models import dense
from tests.tiny_models.dense import llama
from tests.tiny_models.packed import quantised
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[Any], None]
IDS = tiny_models.prompt_ids(6)


def detached(model: Any) -> dl.DetachedNetwork:
    return dl.detach(dl.load_model(model), input_ids=IDS)


def by_an_optimizer(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    model(input_ids=torch.tensor(IDS)).logits.sum().backward()
    optimizer.step()


def by_loading_a_state(model: Any) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def by_one_row(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] *= 2


def by_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


@pytest.mark.parametrize("change", [by_an_optimizer, by_loading_a_state, by_one_row, by_data])
def test_weights_that_are_written_to_are_refused(change: Change) -> None:
    model = llama()
    network = detached(model)
    altered = network.replace(drop=dl.mlp(1))
    J, ordinary = network.jacobian("joint"), network.jacobian("joint", frozen=False)
    change(model)
    for use in (
        J.dense,
        lambda: network.jacobians().rmatmat_shared(torch.eye(J.shape[0], dtype=torch.float64)),
        lambda: network.reconstruction,
        lambda: network.apply(J.x.view(1, J.tokens, -1)),
        lambda: altered.jacobian("joint").dense(),
        lambda: dl.svd(J, k=2),
        ordinary.dense,
    ):
        with pytest.raises(ModelError, match=r"^the weights of \S+ were written to after .*; detach again$"):
            use()


def by_scales(model: Any) -> None:
    """Write to the scales of packed weights, those of double quantisation where they are so."""
    for parameter in model.parameters():
        if hasattr(parameter, "quant_state"):
            (parameter.quant_state.state2 or parameter.quant_state).absmax.mul_(2)
    for module in model.modules():
        if hasattr(module, "state"):
            module.state.SCB.mul_(2)


@pytest.mark.parametrize("change", [by_one_row, by_scales])
@pytest.mark.parametrize("kind", ["nf4", "nf4 nested", "int8"])
def test_so_are_packed_ones(kind: str, change: Change) -> None:
    model = quantised(llama(torch.float32), kind)
    network = detached(model)
    J = network.jacobian("joint", target="logits")
    expected = J.dense()
    model(input_ids=torch.tensor(IDS))
    assert torch.equal(J.dense(), expected)
    change(model)
    for operator in (J, network.jacobian("joint")):
        with pytest.raises(ModelError, match="were written to"):
            operator.dense()
    with pytest.raises(ModelError, match="were written to"):
        network.replace(drop=[dl.mlp(0)])


def by_assigning_a_state(model: Any) -> None:
    state = {name: 1.1 * value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def by_setting_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data


def by_another_block(model: Any) -> None:
    model.model.layers[1] = llama(seed=1).model.layers[1]


def in_half_precision(model: Any) -> None:
    model.half()


def to_meta(model: Any) -> None:
    model.to("meta")


REPLACED = [by_assigning_a_state, by_setting_data, by_another_block, in_half_precision, to_meta]


@pytest.mark.parametrize("change", REPLACED)
def test_a_network_outlives_the_weights_that_were_replaced(change: Change) -> None:
    model = llama()
    network = detached(model)
    expected, logits = network.jacobian("joint").dense(), network.jacobian("joint", target="logits")
    expected_logits = logits.dense()
    change(model)
    assert torch.equal(network.jacobian("joint").dense(), expected)
    assert torch.equal(logits.dense(), expected_logits)
    assert network.reconstruction.norm_error < 1e-12
    assert dl.svd(network.jacobian(0), k=2).S.dtype is torch.float64


@pytest.mark.parametrize("change", REPLACED)
def test_what_takes_another_pass_of_a_model_that_was_replaced_is_refused(change: Change) -> None:
    model = llama()
    network = detached(model)
    made, altered = detached(model), network.replace(drop=dl.mlp(0))
    before = made.jacobian("joint", frozen=False)
    before.dense()
    change(model)
    for use in (
        lambda: network.jacobian("joint", frozen=False).dense(),
        lambda: network.jacobian("joint", target=dl.mlp(1)).y,
        lambda: altered.jacobian("joint").dense(),
    ):
        with pytest.raises(ModelError):
            use()
    if change not in (by_another_block, by_assigning_a_state, to_meta):  # these leave the copy its own weights
        with pytest.raises(ModelError, match="were replaced"):
            before.dense()


def test_a_model_that_was_converted_gives_other_logits_however_near() -> None:
    model = llama(torch.bfloat16)
    network = detached(model)
    expected = network.jacobian(0).dense()
    model.float()
    assert torch.equal(network.jacobian(0).dense(), expected)
    for use in (
        lambda: network.jacobian("joint", target=dl.mlp(1)).y,
        lambda: network.jacobian("joint", frozen=False),
    ):
        with pytest.raises(ModelError, match="gives other logits on the prompt"):
            use()


@pytest.mark.parametrize("change", [by_loading_a_state, by_setting_data, in_half_precision])
def test_pinned_modules_have_the_weights_of_their_pass(change: Change) -> None:
    model = next(iter(UNDECLARED.values()))(torch.float64)
    J = detached(model).jacobian("joint")
    change(model)
    with pytest.raises(ModelError, match="detach again"):
        J.dense()


def test_a_table_that_grew_gives_other_logits() -> None:
    model = llama()
    network = detached(model)
    model.resize_token_embeddings(model.config.vocab_size + 10)
    with pytest.raises(ModelError, match="gives other logits on the prompt"):
        _ = network.jacobian("joint", target=dl.mlp(1)).y


def test_so_it_does_where_the_way_to_the_logits_is_read() -> None:
    model = llama()
    network = detached(model)
    model.resize_token_embeddings(model.config.vocab_size + 10)
    with pytest.raises(ModelError, match=r"^the weights of \S+ were .* after it was frozen"):
        network.jacobian(2, target="logits")


def by_multipliers(model: Any) -> None:
    model.model.embedding_multiplier = 3.0
    for block in model.model.layers:
        block.residual_multiplier = 3.0


def with_multipliers_in_tensors(dtype: torch.dtype) -> Any:
    model: Any = dense.granite(dtype)
    for block in model.model.layers:
        block.residual_multiplier = torch.tensor(block.residual_multiplier, dtype=torch.float64)
    return model


def in_place(model: Any) -> None:
    for block in model.model.layers:
        block.residual_multiplier.mul_(3)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (dense.granite, by_multipliers),
        (with_multipliers_in_tensors, in_place),
        (dense.granite, lambda model: setattr(model.config, "logits_scaling", 9.0)),
        (dense.cohere2, lambda model: setattr(model, "logit_scale", 3.0)),
        (dense.gemma2, lambda model: setattr(model.config, "final_logit_softcapping", 0.1)),
        (dense.gemma2, lambda model: setattr(model.config, "final_logit_softcapping", None)),
        (dense.gpt_neox, lambda model: setattr(model.config, "num_attention_heads", 2)),
        (dense.qwen3, lambda model: setattr(model.model.layers[1].self_attn, "num_key_value_groups", 4)),
    ],
)
def test_numbers_that_are_no_weights_are_those_of_the_pass(make: Any, change: Change, tmp_path: Path) -> None:
    def read_late(network: dl.DetachedNetwork, altered: dl.DetachedNetwork) -> list[Tensor]:
        """What is first made of the model when it is asked for."""
        J, inner = network.jacobian("joint", target="logits"), network.jacobian(2, source=dl.layer(1), target="logits")
        again = network.replace(drop=[dl.mlp(1)])
        return [
            *(made for J in (J, inner) for made in (J.dense(), J.offset, J.y)),
            network.jacobian(1, target="logits", position=2).y,
            *(made.jacobian("joint", target=end).dense() for made in (altered, again) for end in ("output", "logits")),
            torch.tensor([candidate.probability for candidate in altered.prediction]),
        ]

    model = make(torch.float64)
    network, altered, unchanged = detached(model), detached(model).replace(drop=dl.mlp(0)), detached(model)
    expected = read_late(unchanged, unchanged.replace(drop=dl.mlp(0)))
    definition = unchanged.jacobian(0).definition
    change(model)
    for found, wanted in zip(read_late(network, altered), expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(network.jacobian(0, target="logits").y, network.streams.logits[0])
    assert network.jacobian(0).definition == definition
    dl.DetachedNetwork.load(network.save(tmp_path), make(torch.float64))


def test_the_values_of_logits_are_those_of_the_pass() -> None:
    """So that a reading of logits that is wrong shows in the reconstruction."""
    network = detached(dense.cohere2(torch.float64))
    network.model_of_pass.logit_scale *= 2
    assert network.jacobian(0, target="logits").reconstruction.norm_error == pytest.approx(1)


def test_weights_are_looked_at_where_they_lie() -> None:
    weights = [nn.Parameter(torch.randn(3, 4).t()), nn.Parameter(torch.randn(5).to(torch.bfloat16))]
    with torch.inference_mode():
        weights.append(torch.full((2, 2), torch.nan))
    unmoved = Unmoved("a model", [*weights, torch.empty(0), torch.empty(3, device="meta")])
    unmoved.require()
    weights[1].data[2] += 1
    with pytest.raises(ModelError, match=r"^the weights of a model were written to"):
        unmoved.require_unwritten()


def test_adapters_that_rest_may_be_trained() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config, adapter_name="runs")
    model.add_adapter("rests", config)
    network = detached(model)
    J, ordinary = network.jacobian("joint"), network.jacobian("joint", frozen=False)
    expected: list[Tensor] = [J.dense(), ordinary.dense()]

    def train(adapter: str) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if f".{adapter}." in name:
                    parameter += 0.1

    train("rests")
    assert torch.equal(J.dense(), expected[0])
    assert torch.equal(ordinary.dense(), expected[1])
    assert len(list(weights_in_use(model))) < len(list(model.parameters()))
    train("runs")
    for operator in (J, ordinary):
        with pytest.raises(ModelError, match="were written to"):
            operator.dense()


@pytest.mark.parametrize("rest", ["merge_adapter", "disable_adapter_layers"])
def test_so_may_those_that_are_merged_or_switched_off(rest: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config)
    getattr(model, rest)()
    J = detached(model).jacobian("joint", frozen=False)
    expected = J.dense()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1
    assert torch.equal(J.dense(), expected)


def test_a_merged_adapter_is_seen() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config)
    J = detached(model).jacobian("joint")
    model.merge_adapter()
    with pytest.raises(ModelError, match="were written to"):
        J.dense()


@pytest.mark.parametrize("path", ["model.layers.1.mlp", "model.layers.1", "model"])
def test_values_and_ordinary_jacobians_of_a_model_that_lost_a_part_are_one_line(path: str) -> None:
    model = llama()
    network = detached(model)
    model.set_submodule(path, nn.Identity())
    for use in (
        lambda: network.jacobian(0, target=dl.mlp(1)).y,
        lambda: network.jacobian(0, frozen=False).dense(),
    ):
        with pytest.raises(
            ModelError, match=r"^the weights of \S+ were replaced|gives other logits|fails \("
        ) as refusal:
            use()
        assert "\n" not in str(refusal.value)

"""What is made anew of a network's model, as after ``replace``, is made of the model of its pass, or refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import detjac_lanczos as dl
from detjac_lanczos.errors import ModelError
from tests import tiny_models
from tests.offloading import in_host_memory
from tests.tiny_models.dense import gemma, llama
from tests.tiny_models.packed import quantised

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[Any], Any]
IDS = tiny_models.prompt_ids(6)
REFUSED = r"^the weights of \S+ were .* after it was frozen on the prompt; detach again$"


def detached(model: Any) -> dl.DetachedNetwork:
    return dl.detach(dl.load_model(model), input_ids=IDS)


def adapted(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def norms(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.05


def scaled(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 5.0)


def disabled(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def deleted(model: Any) -> None:
    peft = pytest.importorskip("peft")
    model.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.set_adapter("other")
    model.delete_adapter("default")


def merged(model: Any) -> None:
    model.merge_adapter()


def codes(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data = model.model.layers[1].mlp.down_proj.weight.data.clone().fill_(17)


def codes_in_place(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data.view(torch.uint8).bitwise_xor_(0x11)


def another_state(model: Any) -> None:
    weight = model.model.layers[1].mlp.down_proj.weight
    state = copy.deepcopy(weight.quant_state)
    (state.state2 or state).absmax.mul_(2)
    weight.quant_state = state


def kept_elsewhere(model: Any) -> None:
    model.model.layers[1].mlp.down_proj._hf_hook.weights_map["weight"].mul_(1.5)


CASES: dict[str, tuple[Callable[[], Any], Change]] = {
    "norms": (gemma, norms),
    "norms that are held": (llama, norms),
    "an adapter's scale": (lambda: adapted(llama()), scaled),
    "disabled adapters": (lambda: adapted(llama()), disabled),
    "a deleted adapter": (lambda: adapted(llama()), deleted),
    "a merged adapter": (lambda: adapted(llama()), merged),
    "host memory": (lambda: in_host_memory(llama()), kept_elsewhere),
    **{f"codes, {kind}": (lambda k=kind: quantised(llama(torch.float32), k), codes) for kind in ("nf4", "int8")},
    **{
        f"codes in place, {kind}": (lambda k=kind: quantised(llama(torch.float32), k), codes_in_place)
        for kind in ("nf4", "int8")
    },
    **{
        f"another state, {kind}": (lambda k=kind: quantised(llama(torch.float32), k), another_state)
        for kind in ("nf4", "nf4 nested")
    },
    **{
        f"an adapter merged into {kind}": (lambda k=kind: adapted(quantised(llama(torch.float32), k)), merged)
        for kind in ("nf4", "int8")
    },
}


@pytest.mark.filterwarnings("ignore:Merge lora module to")
@pytest.mark.parametrize("case", CASES)
def test_a_model_that_changed_makes_no_network_of_neither(case: str) -> None:
    make, change = CASES[case]
    model = make()
    network = detached(model)
    before = network.replace(drop=dl.mlp(1))
    change(model)
    for use in (
        lambda: network.replace(drop=dl.mlp(1)),
        lambda: before.jacobian("joint").dense(),
        lambda: network.jacobian("joint", target="logits").dense(),
    ):
        with pytest.raises(ModelError, match=REFUSED):
            use()


@pytest.mark.parametrize("make", [gemma, llama])
def test_a_network_read_back_belongs_to_the_model_as_it_was_then(make: Any, tmp_path: Path) -> None:
    model = make()
    loaded = dl.DetachedNetwork.load(detached(model).save(tmp_path), model)
    norms(model)
    with pytest.raises(ModelError, match=REFUSED):
        loaded.replace()


def run(model: Any) -> None:
    model(input_ids=torch.tensor(IDS))


def generate(model: Any) -> None:
    model.generate(input_ids=torch.tensor(IDS), max_new_tokens=3, do_sample=False)


def differentiate(model: Any) -> None:
    model(input_ids=torch.tensor(IDS)).logits.sum().backward()
    model.train().requires_grad_(False).eval().zero_grad()


def write_to_what_models_write_to(model: Any) -> None:
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            buffer.add_(0)


def train_what_is_disabled(model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1


def with_disabled_adapters() -> Any:
    model = adapted(llama())
    disabled(model)
    return model


def after_a_pass() -> Any:
    """Return a model whose scales have left its weights, as a pass of LLM.int8 has them do."""
    model = quantised(llama(torch.float32), "int8")
    run(model)
    return model


def other_scales(model: Any) -> None:
    state = model.model.layers[1].mlp.down_proj.state
    state.SCB = 2 * state.SCB


SERVED: dict[str, tuple[Callable[[], Any], Change]] = {
    "a pass": (llama, run),
    "generation": (gemma, generate),
    "gradients": (gemma, differentiate),
    "buffers of the rotary embedding": (llama, write_to_what_models_write_to),
    "a pass with adapters": (lambda: adapted(llama()), run),
    "a pass from host memory": (lambda: in_host_memory(llama()), run),
    "other scales of int8": (after_a_pass, other_scales),
    "training of what is disabled": (with_disabled_adapters, train_what_is_disabled),
    **{f"a pass, {kind}": (lambda k=kind: quantised(llama(torch.float32), k), run) for kind in ("nf4", "int8")},
}


@pytest.mark.parametrize("case", SERVED)
def test_a_model_that_was_only_used_is_the_one_of_the_pass(case: str) -> None:
    make, use = SERVED[case]
    model = make()
    network = detached(model)
    expected = network.replace().jacobian("joint").dense()
    use(model)
    assert torch.equal(network.replace().jacobian("joint").dense(), expected)


def test_ordinary_jacobians_outlive_the_training_of_adapters_that_are_disabled() -> None:
    model = with_disabled_adapters()
    ordinary = detached(model).jacobian("joint", frozen=False)
    expected = ordinary.dense()
    train_what_is_disabled(model)
    assert torch.equal(ordinary.dense(), expected)

"""What a definition says is frozen, and lies behind the last block, is what the model has."""

from typing import Any

import pytest
import torch

from detjac_lanczos.frozen.structure import recognise
from detjac_lanczos.operators import PinnedNetwork, detach
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE
from tests.tiny_models.undeclared import UNDECLARED

EVERY = DENSE | MOE | UNDECLARED
PARTS = ("RMS norm", "layer norm", "attention weight", "gated MLP", "without a gate", "routing of experts")
FROZEN: dict[str, str] = {
    "Llama": "RMS norm, attention weight, gated MLP",
    "GPT-2": "layer norm, attention weight, without a gate",
    "GPT-NeoX": "layer norm, attention weight, without a gate",
    "OPT": "layer norm, attention weight, without a gate",
    "Cohere 2": "layer norm, attention weight, gated MLP",
    "Mixtral": "RMS norm, attention weight, routing of experts",
    "Llama 4": "RMS norm, attention weight, gated MLP, routing of experts",
    "Nemotron": "layer norm, attention weight, without a gate",
    "Arcee": "RMS norm, attention weight, without a gate",
    "StableLM": "layer norm, attention weight, gated MLP",
    "Gemma": "RMS norm, attention weight, gated MLP",
}
FACTORS = {
    "gate": ("the activation act(gate x) of every gated MLP", "the activation act(gate x) in each"),
    "up": ("the up projection of every gated MLP", "the up projection in each"),
    "half": ("in every gated MLP, each of its two factors in turn", "in each its two factors in turn"),
}
CLAMPED = {
    "gate": ["which entries of the experts' up projections are clamped"],
    "up": ["clamp(u) + 1"],
    "half": ["which entries of the experts' up projections are clamped", "clamp(u) + 1"],
}
ENDS = {"Llama": "the final norm", "OPT post-norm": "the output projection", "OPT plain": ""}


def definition(name: str, target: str = "output", freeze: Any = "gate") -> dict[str, Any]:
    loaded = tiny_models.loaded(EVERY[name](torch.float64))
    return detach(loaded, input_ids=[3, 1, 4], freeze=freeze).jacobian(0, target=target).definition


@pytest.mark.parametrize("name", FROZEN)
def test_the_kinds_of_what_is_frozen_are_those_of_the_model(name: str) -> None:
    frozen = definition(name)["frozen"]
    assert [part for part in PARTS if part in frozen] == FROZEN[name].split(", ")


@pytest.mark.parametrize("freeze", FACTORS)
def test_the_factor_of_a_gated_product_is_the_chosen_one(freeze: str) -> None:
    frozen = definition("Llama 4", freeze=freeze)["frozen"]
    for way, said in FACTORS.items():
        assert [words in frozen for words in said] == [way == freeze] * 2


def test_clamps_of_experts_are_told_where_there_are_any() -> None:
    for freeze, said in CLAMPED.items():
        assert all(words in definition("gpt-oss", freeze=freeze)["frozen"] for words in said)
        assert "clamp" not in definition("Mixtral", freeze=freeze)["frozen"]


def test_a_softcap_of_logits_is_frozen_on_the_way_to_them_where_there_is_one() -> None:
    for name, target, told in (
        ("Gemma 2", "logits", True),
        ("Gemma 2", "output", False),
        ("Gemma 3", "logits", False),
    ):
        assert ("the logits' softcap" in definition(name, target)["frozen"]) == told


def test_nothing_is_frozen_in_an_ordinary_jacobian() -> None:
    network = detach(tiny_models.loaded(tiny_models.llama()), input_ids=[3, 1, 4])
    assert network.jacobian(0, frozen=False).definition["frozen"] == "nothing"


@pytest.mark.parametrize("name", ENDS)
def test_what_lies_behind_the_last_block_is_named(name: str) -> None:
    for target, with_tail, without in (
        ("output", f"after {ENDS[name]}", "after the last block"),
        ("residual", f"the residual stream before {ENDS[name]}", "the residual stream after the last block"),
    ):
        told = definition(name, target)
        assert told["tail"] == ENDS[name]
        assert told["target_definition"] == (with_tail if ENDS[name] else without)


def test_an_undeclared_decoder_may_end_without_a_norm() -> None:
    """As the declared one; more than a norm is not known by its name."""
    for name, said in (ENDS | {"OPT post-norm": "what follows the last block"}).items():
        loaded = tiny_models.loaded(DENSE[name](torch.float64))
        prompts = detach(loaded, input_ids=[3, 1, 4]).prompts
        network = PinnedNetwork.attach(loaded, recognise(loaded.model), prompts, "gate")
        assert network.tail_words == said
        if not said:
            assert network.tail.branches[0].chain == ()

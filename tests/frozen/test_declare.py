"""A declaration that does not fit its model is one clear line, however it is wrong, and as early as it shows."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detjac_lanczos.errors import InputError, UnsupportedModelError
from detjac_lanczos.frozen import families
from detjac_lanczos.frozen.branch_check import require_branches
from detjac_lanczos.frozen.declare import Family, Stream
from detjac_lanczos.frozen.families.gemma import GEMMA2
from detjac_lanczos.frozen.families.gpt2 import GPT2
from detjac_lanczos.frozen.families.granite import GRANITE
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.families.phi import PHI3
from detjac_lanczos.frozen.maps import Linear, Sum
from detjac_lanczos.frozen.widths import width_after
from detjac_lanczos.frozen.words import (
    ActivatedMLP,
    Constant,
    Either,
    GatedMLP,
    LayerNorm,
    Plus,
    Project,
    RMSNorm,
    RoutedExperts,
    Scale,
    Softcap,
    stacked_values,
    values_by_head,
)
from detjac_lanczos.models.weights import DenseWeight
from detjac_lanczos.operators import detach
from tests import tiny_models
from tests.tiny_models import moe, undeclared
from tests.tiny_models.dense import DENSE

NORM, VALUES, MIXING, OUT = ATTENTION.words
MLP_NORM, GATED, DOWN = MLP.words
CAP = Softcap("config.final_logit_softcapping")
HEAD, K = Project("lm_head"), Project("model.layers.0.self_attn.k_proj")


def attention(family: Family, **changes: Any) -> Family:
    """Return a family with another attention branch."""
    return _with(family, 0, changes)


def mlp(family: Family, **changes: Any) -> Family:
    """Return a family with another MLP branch."""
    return _with(family, 1, changes)


def _with(family: Family, stage: int, changes: dict[str, Any]) -> Family:
    stages: list[Any] = list(family.block)
    stages[stage] = (replace(stages[stage][0], **changes),)
    return replace(family, block=tuple(stages))


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: replace(ATTENTION, role="attn"), "'attention' or 'mlp', not 'attn'"),
        (lambda: replace(ATTENTION, role="mlp"), "Attend among its words is the attention branch, not 'mlp'"),
        (lambda: replace(MLP, words=DOWN), "mlp branch are a tuple of words, not a Project; one alone has a comma"),
        (lambda: replace(MLP, words="mlp"), "not a str; one alone has a comma"),
        (lambda: Stream(MLP_NORM), "Stream is made of a tuple of words, not a RMSNorm"),  # type: ignore[arg-type]
        (lambda: Either("mlp", GATED), r"Either\('mlp'\) takes tuples of words, not a GatedMLP"),  # type: ignore[arg-type]
        (lambda: Plus((DOWN,)), "Plus takes a tuple of chains; a Project is among them"),  # type: ignore[arg-type]
        (lambda: replace(LLAMA, block=(ATTENTION, MLP)), "a stage of Llama 2 / 3 .* not a Residual; one alone"),
        (lambda: replace(LLAMA, block=ATTENTION), "the block of Llama 2 / 3 is a tuple of stages, not a Residual"),
        (lambda: replace(LLAMA, block=((ATTENTION, DOWN),)), "a stage .*; a Project is among them"),
        (lambda: replace(LLAMA, block=((ATTENTION,), (replace(MLP, role="attention"),))), "two branches of a block"),
        (lambda: replace(LLAMA, entry=(Scale("x"))), "entry of Llama 2 / 3 is a tuple of words, not a Scale"),
        (lambda: replace(LLAMA, tail=("norm",)), "tail of .*; a str is among them"),
        (lambda: replace(LLAMA, tail=(RMSNorm,)), "tail of .*; a type is among them"),
        (lambda: replace(MLP, words=(*MLP.words, CAP)), "the mlp branch are a tuple of words; a Softcap is among them"),
        (lambda: replace(LLAMA, entry=(CAP,)), "entry of .*; a Softcap is among them"),
        (lambda: replace(LLAMA, tail=(RMSNorm("norm"), CAP)), "tail of .*; a Softcap is among them"),  # type: ignore[arg-type]
        (lambda: Plus(((CAP,),)), "a chain of Plus is a tuple of words; a Softcap is among them"),  # type: ignore[arg-type]
        (lambda: replace(LLAMA, logits=()), "logits of Llama 2 / 3 is empty"),
        (
            lambda: replace(LLAMA, classes=("LlamaForCausalLM")),
            "classes of .* are a tuple of names, not a str",
        ),
        (lambda: replace(LLAMA, when="use_cache"), "an attribute of the configuration and its value, not 'use_cache'"),
    ],
)
def test_what_the_declaration_alone_shows(declare: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        declare()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", [None, "1GB"])
@pytest.mark.parametrize(
    ("model", "family", "words"),
    [
        ("Llama", mlp(LLAMA, output="mlp.nope"), r"blocks\.0 is .*output='mlp\.nope'.* `nope`"),
        ("Llama", mlp(LLAMA, scale="beta"), r"blocks\.0 is .*'beta'"),
        (
            "Llama",
            mlp(LLAMA, scale="input_layernorm.weight"),
            r"blocks\.0 is .*input_layernorm\.weight has the shape \(24,\), and a scale is one number",
        ),
        (
            "Llama",
            replace(LLAMA, entry=(Scale("norm.weight"),)),
            r"entry is .*Scale\('norm\.weight'\): norm\.weight has the shape \(24,\), and a scale is one number",
        ),
        ("Llama", mlp(LLAMA, scale="mlp"), r"blocks\.0 is .*'mlp'.* not 'LlamaMLP'"),
        ("Llama", attention(LLAMA, words=(Project("self_attn.w"),)), r"blocks\.0 is .*Project\('self_attn\.w'\).* `w`"),
        ("Llama", replace(LLAMA, entry=(Scale("nothing"),)), r"entry is .*Scale\('nothing'\)"),
        ("Llama", replace(LLAMA, blocks="nope"), r"LlamaModel is .*blocks='nope'"),
        ("Llama", replace(LLAMA, blocks="norm"), r"LlamaModel is .*blocks='norm': .* a LlamaRMSNorm, not a ModuleList"),
        ("Llama", replace(LLAMA, decoder="nope"), r"LlamaForCausalLM is .*decoder='nope'"),
        ("Llama", replace(LLAMA, causal_model="nope"), r"LlamaForCausalLM is .*causal_model='nope'"),
        (
            "Llama",
            replace(LLAMA, logits=(Project("model.nope"),)),
            r"the way to the logits is .*Project\('model\.nope'\)",
        ),
        (
            "Llama",
            replace(LLAMA, logits=(Project("model.layers.0.self_attn.k_proj"),)),
            "20 wide, and there are 40 logits",
        ),
        (
            "Llama",
            replace(LLAMA, logits=(RMSNorm("model.norm"), HEAD)),
            r"the way to the logits is .*RMSNorm\('model\.norm'\): it freezes what a capture records, and nothing is",
        ),
        (
            "Gemma 2",
            replace(GEMMA2, logits=(Project("lm_head"), Softcap("config.final"))),
            r"Softcap\('config\.final'\)",
        ),
        ("Llama", attention(LLAMA, words=(NORM, VALUES, OUT)), r"o_proj'\): it takes rows 40 wide and is given 20"),
        (
            "Llama",
            attention(LLAMA, words=(NORM, Project("self_attn.v_proj", stacked_values), MIXING, OUT)),
            r"Attend\('self_attn'\): rows 5 wide have no 2 heads",
        ),
        (
            "Phi-3",
            attention(PHI3, words=(NORM, Project("self_attn.qkv_proj"), MIXING, OUT)),
            r"o_proj'\): it takes rows 32 wide and is given 128",
        ),
        (
            "Llama",
            mlp(LLAMA, words=(MLP_NORM, GatedMLP.fused("mlp.gate_proj", "mlp.act_fn"), DOWN)),
            r"down_proj'\): it takes rows 40 wide and is given 20",
        ),
        (
            "Phi-3",
            mlp(PHI3, words=(MLP_NORM, ActivatedMLP("mlp.gate_up_proj", "mlp.activation_fn"), DOWN)),
            r"down_proj'\): it takes rows 40 wide and is given 80",
        ),
        (
            "GPT-2",
            mlp(GPT2, words=(GPT2.block[1][0].words[0], GatedMLP("mlp.c_fc", "mlp.c_proj", "mlp.act"))),  # type: ignore[index]
            r"GatedMLP\('mlp\.c_fc', 'mlp\.c_proj', 'mlp\.act'\): it takes rows 40 wide and is given 24",
        ),
        ("Llama", mlp(LLAMA, words=(MLP_NORM, GATED)), "this gives rows 40 wide, and 24 are wanted"),
        ("Llama", attention(LLAMA, output="self_attn.q_proj"), r"something else .*q_proj \+ mlp\.down_proj"),
        ("Gemma 2", attention(GEMMA2, output="self_attn.o_proj"), r"something else .* self_attn\.o_proj \+ post_feed"),
        ("Granite", mlp(GRANITE, scale=None), r"something else .* residual_multiplier \* self_attn\.o_proj \+ mlp"),
        ("Llama", attention(LLAMA, output="self_attn.config"), r"blocks\.0 is .*output='self_attn\.config'"),
    ],
)
def test_what_its_model_shows(
    model: str, family: Family, words: str, memory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "FAMILIES", (family,))
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        detach((DENSE[model](torch.float64), None), input_ids=[1, 2, 3], memory=memory)
    assert f"is not built as {family.name} is" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_sum_may_be_off_by_its_rounding_alone(dtype: torch.dtype) -> None:
    before, attended, gated = torch.eye(3, dtype=dtype).split(1)
    outputs = {"attention.0": [attended], "mlp.0": [gated]}
    added = before + attended + gated
    for roundings, refused in ((4, False), (40, True)):
        after = added + roundings * 3 * torch.finfo(dtype).eps * before
        with pytest.raises(UnsupportedModelError, match="something else") if refused else nullcontext():
            require_branches(LLAMA, [nn.Module()], outputs, [before, after])


@pytest.mark.parametrize(
    ("family", "freeze", "words"),
    [
        (
            attention(LLAMA, words=(NORM, Project("self_attn.v_proj", values_by_head), MIXING, OUT)),
            "gate",
            r"self_attn\.v_proj has no such part",
        ),
        (
            attention(LLAMA, words=(*ATTENTION.words, Constant("self_attn"))),
            "gate",
            r"Constant\('self_attn'\) cannot be read in blocks\.0 \('tuple' object",
        ),
        (
            mlp(LLAMA, words=(MLP_NORM, RoutedExperts("mlp"))),
            "gate",
            r"RoutedExperts\('mlp'\) cannot be read in blocks\.0",
        ),
        (
            mlp(LLAMA, words=(MLP_NORM, GatedMLP("mlp.gate_proj", "mlp.down_proj", "mlp.act_fn"), DOWN)),
            "up",
            r"GatedMLP\('mlp\.gate_proj', 'mlp\.down_proj', 'mlp\.act_fn'\) cannot be read in blocks\.0",
        ),
    ],
)
def test_what_the_forward_pass_shows(family: Family, freeze: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (family,))
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        detach((tiny_models.llama(), None), input_ids=[1, 2, 3], freeze=freeze)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "words"),
    [
        (replace(LLAMA, block=((ATTENTION, MLP),)), r"mlp\.0 gives something else"),
        (
            mlp(LLAMA, words=(MLP_NORM, GatedMLP("mlp.up_proj", "mlp.gate_proj", "mlp.act_fn"), DOWN)),
            r"mlp\.0 gives something else",
        ),
        (
            attention(LLAMA, words=(RMSNorm("input_layernorm", plus_one=True), *ATTENTION.words[1:])),
            r"attention\.0 gives something else",
        ),
    ],
    ids=["side by side", "gate and up", "1 + w"],
)
def test_what_the_values_show_names_the_first_part(
    family: Family, words: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "FAMILIES", (family,))
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        detach((tiny_models.llama(dtype), None), input_ids=[1, 2, 3])
    assert "\n" not in str(caught.value)


def nemotron_family(*, plus_one: bool) -> Family:
    """Layer norms by 1 + w, un-gated MLPs."""
    first, last = LayerNorm("input_layernorm", plus_one), LayerNorm("post_attention_layernorm", plus_one)
    return replace(
        mlp(
            attention(LLAMA, words=(first, *ATTENTION.words[1:])),
            words=(last, ActivatedMLP("mlp.up_proj", "mlp.act_fn"), DOWN),
        ),
        name="Nemotron",
        classes=("NemotronForCausalLM",),
        tail=(LayerNorm("norm", plus_one),),
    )


@pytest.mark.parametrize("memory", [None, "1GB"])
def test_a_layer_norm_may_multiply_by_one_more_than_its_weight(
    memory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against the model's own modules, of which no family says what they compute."""
    model, ids = undeclared.nemotron(torch.float64), tiny_models.prompt_ids(6)
    by_modules = detach((model, None), input_ids=ids)
    assert by_modules.route == "autograd"
    expected = by_modules.jacobian("joint").dense()
    monkeypatch.setattr(families, "FAMILIES", (nemotron_family(plus_one=True),))
    network = detach((model, None), input_ids=ids, memory=memory)
    assert network.route == "frozen"
    assert (network.jacobian("joint").dense() - expected).norm() <= 1e-12 * expected.norm()
    monkeypatch.setattr(families, "FAMILIES", (nemotron_family(plus_one=False),))
    with pytest.raises(UnsupportedModelError, match=r"attention\.0 gives something else"):
        detach((model, None), input_ids=ids, memory=memory)


def test_a_value_that_the_configuration_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (replace(LLAMA, when=("nothing", 1)),))
    with pytest.raises(InputError, match=r"when of Llama 2 / 3 names what LlamaForCausalLM has not: .*'nothing'"):
        detach((tiny_models.llama(), None), input_ids=[1, 2, 3])


@pytest.mark.parametrize("clip", [0.5, 50.0])
def test_a_value_that_no_family_is_declared_for_is_named(clip: float) -> None:
    """Also where no entry of the prompt reaches a clip: it is no affine function."""
    said = f"OlmoeForCausalLM with clip_qkv={clip} is not supported; OLMoE is declared for clip_qkv=None"
    with pytest.raises(UnsupportedModelError, match=f"{said}$") as caught:
        detach((moe.olmoe(clip_qkv=clip), None), input_ids=[1, 2, 3])
    assert "\n" not in str(caught.value)


def test_chains_that_are_summed_are_as_wide_as_each_other() -> None:
    narrow, wide = ((Linear(DenseWeight(torch.ones(f, 5))),) for f in (3, 4))
    assert width_after([Sum((wide, wide))], 5) == 4
    with pytest.raises(ValueError, match=r"widths \[3, 4\] are summed"):
        width_after([Sum((narrow, wide))], 5)


def test_a_branch_that_is_not_declared() -> None:
    with pytest.raises(InputError, match="where the mlp branch of Llama 2 / 3 ends is not known"):
        replace(LLAMA, block=((ATTENTION,),)).branch("mlp")

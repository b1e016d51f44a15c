"""A model with LoRA adapters is the model whose weights hold them; the adapters stay as they are."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

from detjac_lanczos.errors import RunFileError, UnsupportedModelError
from detjac_lanczos.models import load_model
from detjac_lanczos.models.linear_modules import bias_of, embedding_table, weight_of
from detjac_lanczos.operators import DetachedNetwork, detach, layer, mlp
from detjac_lanczos.reading import decode_left, decode_right
from detjac_lanczos.runs import analyze
from tests import tiny_models
from tests.tiny_models import dense
from tests.tiny_models.moe import deepseek_v3, mixtral

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]

IDS = tiny_models.prompt_ids(7)[0]
MODELS: dict[str, Callable[..., Any]] = {
    "Llama": lambda dtype: dense.llama(dtype, bias=True),
    "GPT-2": lambda dtype: dense.gpt2(dtype, tie_word_embeddings=False),
}
LINEAR = {
    "Llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "GPT-2": ["c_attn", "c_proj", "c_fc"],
}


def adapted(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return a PEFT model with random adapters; its linear modules but ``up_proj`` have one."""
    model = MODELS[name](dtype)
    config = {"r": 3, "lora_alpha": 5, "target_modules": LINEAR[name], "lora_dropout": 0.2}
    return drawn(peft.get_peft_model(model, peft.LoraConfig(**config | {"fan_in_fan_out": name == "GPT-2"} | options)))


def drawn(model: Any, seed: int = 3) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            offset = 1.0 if parameter.ndim == 1 else 0.0
            parameter.data.copy_(offset + 0.3 * noise)
    return model


def merged_by_hand(name: str, model: Any, adapters: tuple[str, ...] = ("default",)) -> Any:
    """Return the same model as it came, with W + s B A (and DoRA's row lengths) written into its weights."""
    plain = MODELS[name](next(model.parameters()).dtype)
    inside = dict(model.get_base_model().named_modules())
    for path, module in plain.named_modules():
        holder = inside[path]
        for adapter in adapters:
            if adapter in getattr(holder, "lora_A", {}):
                a, b = holder.lora_A[adapter], holder.lora_B[adapter]
                delta = holder.scaling[adapter] * b.weight.detach() @ a.weight.detach()
                weight = module.weight.detach() + (delta if type(module) is nn.Linear else delta.T)
                if adapter in holder.lora_magnitude_vector:
                    rows = weight if type(module) is nn.Linear else weight.T
                    length = holder.lora_magnitude_vector[adapter].weight.detach()
                    rows *= (length / torch.linalg.vector_norm(rows, dim=1))[:, None]
                module.weight.data = weight.to(module.weight.dtype)
                if b.bias is not None:
                    module.bias.data = module.bias.data + holder.scaling[adapter] * b.bias.detach()
            if adapter in getattr(holder, "lora_embedding_A", {}):
                a, b = holder.lora_embedding_A[adapter].detach(), holder.lora_embedding_B[adapter].detach()
                module.weight.data = module.weight.detach() + holder.scaling[adapter] * (b @ a).T
            if adapter in getattr(holder, "modules_to_save", {}):
                module.load_state_dict(holder.modules_to_save[adapter].state_dict())
    return plain


def results(network: DetachedNetwork) -> Iterator[Tensor]:
    yield from (network.streams.output, network.streams.logits, network.streams.embeddings)
    for options in ({}, {"target": "logits"}, {"source": layer(1), "target": mlp(2)}):
        J = network.jacobian("joint", **options)
        yield from (J.dense(), J.T.dense(), J.y, J.offset)
        assert J.reconstruction.norm_error <= 1e-13


def assert_equal_networks(model: Any, plain: Any) -> None:
    found, expected = (detach(load_model(m), input_ids=IDS) for m in (model, plain))
    for a, b in zip(results(found), results(expected), strict=True):
        assert (a - b).norm() <= 1e-12 * max(b.norm(), 1e-300)


CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "r": 4},
    "biases": {"lora_bias": True, "bias": "none"},
    "DoRA": {"use_dora": True},
    "some blocks": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", MODELS)
def test_an_unmerged_adapter_is_its_merged_weight(name: str, choice: str) -> None:
    model = adapted(name, **CHOICES[choice])
    assert_equal_networks(model, merged_by_hand(name, model))


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_adapter_counts_once(name: str) -> None:
    model = adapted(name)
    expected = merged_by_hand(name, model)
    model.merge_adapter()
    assert_equal_networks(model, expected)


@pytest.mark.parametrize("name", MODELS)
def test_several_adapters_add_up_and_others_rest(name: str) -> None:
    model = adapted(name)
    for extra, rank in (("second", 2), ("third", 4)):
        model.add_adapter(
            extra,
            peft.LoraConfig(r=rank, target_modules=LINEAR[name][:2], fan_in_fan_out=name == "GPT-2"),
        )
    drawn(model)
    model.base_model.set_adapter(["default", "third"])
    assert_equal_networks(model, merged_by_hand(name, model, ("default", "third")))
    model.set_adapter("second")
    assert_equal_networks(model, merged_by_hand(name, model, ("second",)))


@pytest.mark.parametrize("name", MODELS)
def test_disabled_adapters_leave_the_base_model(name: str) -> None:
    norm = {"Llama": "norm", "GPT-2": "ln_f"}[name]
    for options in ({}, {"modules_to_save": ["lm_head", norm]}):
        model = adapted(name, **options)
        with model.disable_adapter():
            assert_equal_networks(model, MODELS[name](torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_head_and_modules_that_were_trained_whole(name: str) -> None:
    norm, embedding = {"Llama": ("norm", "embed_tokens"), "GPT-2": ("ln_f", "wte")}[name]
    for options in (
        {"modules_to_save": ["lm_head", norm]},
        {"modules_to_save": [embedding]},
        {"target_modules": [*LINEAR[name], embedding, "lm_head"]},
    ):
        model = adapted(name, **options)
        assert_equal_networks(model, merged_by_hand(name, model))


COPIED: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "attention": (dense.llama, {}, {"target_modules": ["up_proj"], "modules_to_save": ["self_attn"]}),
    "attention and MLP": (
        deepseek_v3,
        {},
        {"target_modules": ["lm_head"], "modules_to_save": ["self_attn", "mlp"]},
    ),
    "experts": (mixtral, {}, {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "blocks": (
        dense.llama,
        {"num_hidden_layers": 4},
        {"target_modules": ["v_proj"], "layer_replication": [[0, 2], [1, 3]]},
    ),
}
"""Parts that PEFT copies, each with a configuration of its own: model, its options when they are merged, adapter."""


@pytest.mark.parametrize("kind", COPIED)
def test_parts_that_were_copied_are_served_as_themselves(kind: str) -> None:
    make, merged, options = COPIED[kind]
    model = drawn(peft.get_peft_model(make(torch.float64), peft.LoraConfig(r=3, **options)))
    apart, plain = copy.deepcopy(model), make(torch.float64, **merged)
    blocks = apart.get_base_model().model.layers
    for index, block in enumerate(blocks):  # copied blocks share their base weights, to which each would be merged
        blocks[index] = copy.deepcopy(block)
    plain.load_state_dict(apart.merge_and_unload().state_dict())
    configs = {id(m.config): m.config for m in model.modules() if "config" in vars(m)}
    assert len(configs) > 1
    before = {key: copy.deepcopy(vars(config)) for key, config in configs.items()}
    assert_equal_networks(model, plain)
    assert {key: vars(config) for key, config in configs.items()} == before


def test_a_part_that_was_copied_twice_is_named() -> None:
    """To PEFT "attn" is the end of "c_attn" too: it wraps that inside the wrapper of the attention, where none runs."""
    model = adapted("GPT-2", target_modules=["c_fc"], modules_to_save=["attn"])
    with pytest.raises(
        UnsupportedModelError, match=r"transformer\.h\.0\.attn and, once more, c_attn .* merge it first"
    ):
        detach(load_model(model), input_ids=IDS)


@pytest.mark.parametrize(("name", "table"), [("Llama", "embed_tokens"), ("GPT-2", "wte"), ("GPT-2", "wpe")])
def test_memory_is_planned_where_a_table_is_adapted(name: str, table: str) -> None:
    model, plain = adapted(name, target_modules=[table, *LINEAR[name]]), MODELS[name](torch.float64)
    found, expected = (detach(load_model(m), input_ids=IDS, memory="1GiB") for m in (model, plain))
    assert found.plan.peak() == expected.plan.peak()
    assert analyze(load_model(model), input_ids=IDS, k=1, memory="1GiB").tokens


def test_decoding_reads_the_adapted_head_and_table() -> None:
    model = adapted("Llama", target_modules=["lm_head", "embed_tokens", "v_proj"])
    networks = [detach(load_model(m), input_ids=IDS) for m in (model, merged_by_hand("Llama", model))]
    U, _, Vh = torch.linalg.svd(networks[1].jacobian(2).dense())
    y = networks[1].jacobian(2).y
    (left, signs), (expected, _) = (decode_left(n, U[:, :4], y, "output") for n in networks)
    right, nearest = (decode_right(n, Vh[:4].T * signs) for n in networks)
    for found, wanted in zip(left + right, expected + nearest, strict=True):
        assert [entry.id for entry in found] == [entry.id for entry in wanted]
        assert [entry.score for entry in found] == pytest.approx([entry.score for entry in wanted], rel=1e-10)


def test_a_table_is_the_sum_of_its_adapters_or_refused() -> None:
    model = adapted("Llama", target_modules=["embed_tokens", "v_proj"])
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    drawn(model).base_model.set_adapter(["default", "second"])
    expected = merged_by_hand("Llama", model, ("default", "second")).get_input_embeddings().weight
    torch.testing.assert_close(embedding_table(model.get_input_embeddings()), expected.detach())
    model = adapted("Llama", target_modules=["embed_tokens", "v_proj"], use_dora=True)
    with pytest.raises(UnsupportedModelError, match="the embedding has a DoRA adapter"):
        embedding_table(model.get_input_embeddings())


def test_adapters_put_into_a_model_by_transformers_are_read_too() -> None:
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as error:
        pytest.skip(f"transformers {transformers.__version__}, peft {peft.__version__}: {error}")
    model = MODELS["Llama"](torch.float64)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=LINEAR["Llama"]), adapter_name="default")
    drawn(model)
    model.get_base_model = lambda: model
    expected = merged_by_hand("Llama", model)
    del model.get_base_model
    assert_equal_networks(model, expected)


def test_the_ordinary_jacobian_and_a_whole_run() -> None:
    model = adapted("Llama")
    plain = merged_by_hand("Llama", model)
    found, expected = (
        detach(load_model(m), input_ids=IDS).jacobian("joint", frozen=False).dense() for m in (model, plain)
    )
    assert (found - expected).norm() <= 1e-12 * expected.norm()
    runs = [analyze(load_model(m), input_ids=IDS, k=3) for m in (model, plain)]
    for a, b in zip(runs[0].tokens, runs[1].tokens, strict=True):
        assert a.singular_values == pytest.approx(b.singular_values, rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_the_adapted_model_is_as_before(name: str) -> None:
    model = adapted(name, modules_to_save=["lm_head"]).train()
    before = {key: (value.data_ptr(), value._version, value.clone()) for key, value in model.state_dict().items()}
    attributes = [sorted(module.__dict__) for module in model.modules()]
    training = [module.training for module in model.modules()]
    implementation = model.config._attn_implementation
    detach(load_model(model), input_ids=IDS)
    for key, value in model.state_dict().items():
        pointer, version, values = before[key]
        assert (value.data_ptr(), value._version) == (pointer, version)
        assert torch.equal(value, values)
    assert [sorted(module.__dict__) for module in model.modules()] == attributes
    assert [module.training for module in model.modules()] == training
    assert model.config._attn_implementation == implementation


def test_the_fingerprint_knows_which_adapters_run(tmp_path: Path) -> None:
    model = adapted("Llama")
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["v_proj"]))
    loaded = load_model(model)
    path = detach(loaded, input_ids=IDS).save(tmp_path)
    seen = {loaded.fingerprint}
    assert load_model(copy.deepcopy(model)).fingerprint in seen

    def state(change: Callable[[], Any]) -> None:
        change()
        fingerprint = load_model(model).fingerprint
        assert fingerprint not in seen
        seen.add(fingerprint)

    state(lambda: model.set_adapter("second"))
    state(lambda: model.base_model.set_adapter(["default", "second"]))
    state(model.base_model.disable_adapter_layers)
    with pytest.raises(RunFileError, match="other weights"):
        DetachedNetwork.load(path, load_model(model))
    model.base_model.enable_adapter_layers()
    model.set_adapter("default")
    assert load_model(model).fingerprint == loaded.fingerprint
    assert DetachedNetwork.load(path, load_model(model)).reconstruction.norm_error <= 1e-13
    state(lambda: model.base_model.model.model.layers[0].self_attn.v_proj.set_scale("default", 2.0))
    state(model.merge_adapter)
    model = adapted("Llama", modules_to_save=["lm_head"])
    state(lambda: None)
    state(lambda: model.get_base_model().lm_head.enable_adapters(False))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapted_weight_multiplies_rows_from_both_sides(dora: bool) -> None:
    """In bfloat16 PEFT keeps adapters in float32."""
    for dtype, bar in ((torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        model = adapted("Llama", dtype, use_dora=dora)
        plain = merged_by_hand("Llama", model)
        module, expected = (m.get_submodule("model.layers.1.self_attn.o_proj") for m in (model.get_base_model(), plain))
        weight = weight_of(module, "o_proj")
        W = expected.weight.detach()
        assert weight.shape == W.shape
        assert (weight.dense() - W).norm() <= bar * W.norm()
        x, y = (torch.randn(5, n, dtype=dtype) for n in reversed(W.shape))
        gate, scale = torch.rand(5, W.shape[0], dtype=dtype), torch.rand(W.shape[1], dtype=dtype)
        for found, wanted in (
            (weight.apply(x), x @ W.T),
            (weight.apply_transposed(y), y @ W),
            (weight.apply(x, scale=scale, gate=gate, add=y), ((x * scale) @ W.T) * gate + y),
        ):
            assert found.dtype is dtype
            assert (found - wanted).norm() <= bar * wanted.norm()


PARTS: list[Callable[[Tensor], Tensor]] = [
    lambda rows: rows.chunk(2)[0],
    lambda rows: rows[1::2],
    lambda rows: rows.unflatten(0, (4, -1))[:, 2:5],
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("choice", ["biases", "DoRA"])
def test_a_part_of_an_adapted_module_is_that_part_of_the_merged_one(choice: str, part: Any) -> None:
    model = adapted("Llama", **CHOICES[choice])
    plain = merged_by_hand("Llama", model)
    module, expected = (m.get_submodule("model.layers.1.self_attn.q_proj") for m in (model.get_base_model(), plain))
    weight, bias = weight_of(module, "q_proj", part), bias_of(module, part)
    W = part(expected.weight.detach()).reshape(-1, expected.in_features)
    y = torch.randn(5, len(W), dtype=torch.float64)
    torch.testing.assert_close(weight.dense(), W)
    torch.testing.assert_close(weight.apply_transposed(y), y @ W)
    torch.testing.assert_close(bias, part(expected.bias.detach()).flatten())


def test_low_precision_reconstructs() -> None:
    network = detach(load_model(adapted("Llama", torch.float32)), input_ids=IDS)
    assert network.reconstruction.norm_error <= 1e-6


def refused(model: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        detach(load_model(model), input_ids=IDS)
    assert "\n" not in str(caught.value)


def test_what_is_more_than_lora_is_refused_by_name() -> None:
    base = MODELS["Llama"](torch.float32)
    prefix = peft.PrefixTuningConfig("CAUSAL_LM", num_virtual_tokens=2)
    refused(peft.get_peft_model(copy.deepcopy(base), prefix), "PREFIX_TUNING, which changes no weights")
    for config, kind in (
        (peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]), "IA3"),
        (peft.LoHaConfig(target_modules=["v_proj"]), "LOHA"),
        (peft.AdaLoraConfig(target_modules=["v_proj"], total_step=10), "ADALORA"),
    ):
        refused(peft.get_peft_model(copy.deepcopy(base), config), f"'default' is of type {kind}, only LoRA")
    invoked = adapted("Llama", torch.float32, alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM", lora_dropout=0.0)
    refused(invoked, r"q_proj: adapter 'default' is a ALoraLinearVariant, no plain LoRA")
    experts = peft.get_peft_model(
        mixtral(torch.float32),
        peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"]),
    )
    refused(experts, "experts is a ParamWrapper adapter")


@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PromptEncoderConfig])
def test_a_learned_prompt_is_refused_with_a_road_that_leads_to_it(config: Any) -> None:
    model = peft.get_peft_model(MODELS["Llama"](torch.float32), config(task_type="CAUSAL_LM", num_virtual_tokens=2))
    refused(model, r"changes no weights .*model\.get_base_model\(\), and .*model\.get_prompt\(1\)")
    base = model.eval().get_base_model()
    rows = base.get_input_embeddings()(torch.tensor(IDS))
    embeds = torch.cat([model.get_prompt(1)[0], rows]).detach()
    found = detach(load_model(base), inputs_embeds=embeds).streams.logits[0]
    expected = model(torch.tensor([IDS])).logits[0, -1]
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        peft.LoHaConfig(target_modules=["v_proj"]),
        peft.LNTuningConfig(target_modules=["input_layernorm"]),
    ],
)
def test_an_adapter_that_is_refused_can_be_merged_as_the_message_says(config: Any) -> None:
    model = peft.get_peft_model(MODELS["Llama"](torch.float32), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    refused(model, r"only LoRA is read in place; merge it first with model\.merge_and_unload\(\)")
    expected = model.eval()(torch.tensor([IDS])).logits[0, -1]
    found = detach(load_model(model.merge_and_unload()), input_ids=IDS).streams.logits[0]
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_states_that_cannot_be_read_as_they_are() -> None:
    model = adapted("Llama")
    model.merge_adapter()
    values = model.get_base_model().model.layers[0].self_attn.v_proj.base_layer.weight.clone()
    with model.disable_adapter():
        refused(model, "would unmerge its disabled adapter in place")
    assert torch.equal(model.get_base_model().model.layers[0].self_attn.v_proj.base_layer.weight, values)
    model = adapted("Llama", use_dora=True)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["v_proj"]))
    model.base_model.set_adapter(["default", "second"])
    refused(model, "DoRA beside other active adapters")
    model = adapted("Llama")
    model.get_base_model().model.layers[1].mlp.down_proj.lora_A.float()
    refused(model, r"layers\.1\.mlp\.down_proj: adapter and weight are not both float64")


def test_the_bias_of_a_layer_without_one_is_that_of_its_adapter() -> None:
    model = peft.get_peft_model(
        tiny_models.llama(), peft.LoraConfig(r=2, lora_alpha=6, target_modules=["v_proj"], lora_bias=True)
    )
    module = drawn(model).get_base_model().model.layers[0].self_attn.v_proj
    found = bias_of(module)
    assert found is not None
    assert torch.equal(found, 3.0 * module.lora_B["default"].bias.detach())
    assert detach(load_model(model), input_ids=IDS).reconstruction.norm_error <= 1e-13


class OwnLora(nn.Module):
    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.A = nn.Linear(base_layer.in_features, 2, bias=False, dtype=torch.float64)
        self.B = nn.Linear(2, base_layer.out_features, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.B(self.A(x))


class OwnWrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.modules_to_save = nn.ModuleDict({"mine": module})

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["mine"](x)


@pytest.mark.parametrize("wrapper", [OwnLora, OwnWrapper])
def test_a_wrapper_with_the_names_of_peft_is_what_its_caller_wrote(wrapper: Any) -> None:
    """Served where J does not multiply by it, as any module is, and refused by its class where J does."""
    model = tiny_models.llama()
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    attention.q_proj = wrapper(attention.q_proj)
    ids = tiny_models.prompt_ids(5)[0]
    assert detach((model, None), input_ids=ids).reconstruction.norm_error <= 1e-12
    mlp.up_proj = wrapper(mlp.up_proj)
    with pytest.raises(UnsupportedModelError, match=rf"mlp\.up_proj is a {wrapper.__name__}, neither dense nor"):
        detach((model, None), input_ids=ids)

"""Decoders that no family declares: exact where their structure is understood, refused by name where it is not."""

import copy
import gc
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.llama import modeling_llama

from detjac_lanczos.errors import DetjacError, InputError, ModelError, UnsupportedModelError
from detjac_lanczos.frozen.maps import Linear
from detjac_lanczos.frozen.prompt import read_prompts
from detjac_lanczos.frozen.structure import recognise
from detjac_lanczos.models.loaded import context_length_of
from detjac_lanczos.models.text_model import token_table_of
from detjac_lanczos.operators import PinnedNetwork, attention, detach, head, layer, mlp, part_check, probe
from detjac_lanczos.operators.autograd import AutogradSweeps
from detjac_lanczos.operators.bars import require
from detjac_lanczos.operators.detach import family_or_structure
from detjac_lanczos.operators.self_check import check, self_check
from detjac_lanczos.reading import decode_right
from detjac_lanczos.solvers.testing import OperatorTestCase
from tests import oracle_structures, tiny_models
from tests.every_block import unchecked
from tests.offloading import in_host_memory, on_disk
from tests.oracle_structures import Branch, Structure, activations
from tests.oracles import OracleA, embeddings_of, errors
from tests.threads import at_once
from tests.tiny_models import dense, undeclared
from tests.tiny_models.dense import SIZES
from tests.tiny_models.draw import drawn
from tests.tiny_models.undeclared import UNDECLARED, on_meta

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (tiny_models.LENGTH, 5)
BAR = 1e-11

STRUCTURES: dict[str, Structure] = {
    "StableLmForCausalLM": Structure(),
    "OlmoForCausalLM": Structure(),
    "HeliumForCausalLM": Structure(),
    "ArceeForCausalLM": Structure(freeze_mlps=activations("mlp.act_fn")),
    "NemotronForCausalLM": Structure(freeze_mlps=activations("mlp.act_fn")),
    "PersimmonForCausalLM": Structure(freeze_mlps=activations("mlp.act")),
    "GPTBigCodeForCausalLM": Structure(
        decoder="transformer", blocks="h", attention=Branch("attn"), freeze_mlps=activations("mlp.act")
    ),
    "ApertusForCausalLM": Structure(freeze_mlps=activations("mlp.act_fn")),
    "BioGptForCausalLM": Structure(decoder="biogpt", mlp=Branch("fc2"), freeze_mlps=activations("activation_fn")),
}
"""Where the oracle finds the parts of these models, by class; written from the modules' source."""


@pytest.fixture(autouse=True)
def known_to_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_structures, "STRUCTURES", oracle_structures.STRUCTURES | STRUCTURES)


def pinned(model: Any, *, ids: list[list[int]], freeze: Any = "gate") -> PinnedNetwork:
    """Take the road of undeclared decoders, its checks included, whether the model's family is declared or not."""
    loaded = tiny_models.loaded(model)
    prompts = read_prompts(loaded, None, chat=False, add_special_tokens=True, input_ids=ids, inputs_embeds=None)
    network = PinnedNetwork.attach(loaded, recognise(model), prompts, freeze)
    self_check(network)
    part_check.require_affine_parts(network)
    return network


EVERY = UNDECLARED | {"Cohere": dense.cohere}
"""One declared model, for its logits: this road fits their scale."""


@cache
def case(name: str, freeze: Any) -> tuple[Any, list[list[int]], PinnedNetwork]:
    model, ids = EVERY[name](torch.float64), tiny_models.prompt_ids(*LENGTHS)
    return model, ids, pinned(model, ids=ids, freeze=freeze)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Cases do not outlive the file: all that lives is walked through whenever garbage is collected."""
    yield
    case.cache_clear()


def targets(blocks: int) -> Iterator[tuple[str, Any, int]]:
    """Name of the stream in the oracle, the library's place, and the first source that lies behind it."""
    yield "output", "output", blocks
    yield "residual", "residual", blocks
    yield "logits", "logits", blocks
    yield "layer.1", layer(1), 2
    yield "attention.1", attention(1), 2
    yield "mlp.2", mlp(2), 3


@pytest.mark.parametrize(
    ("name", "freeze"),
    [*((name, "gate") for name in EVERY), ("StableLM", "half"), ("StableLM", "up")],
)
def test_jacobians_agree_with_reverse_mode_through_detached_modules(name: str, freeze: str) -> None:
    model, ids, network = case(name, freeze)
    generator = torch.Generator().manual_seed(0)
    for prompt, position in ((0, 11), (1, 2)):
        oracle = OracleA(model, embeddings_of(model, ids[prompt]), freeze)
        for stream, place, behind in list(targets(network.blocks))[:: prompt + 1]:
            source, start = ("embeddings", "embeddings") if prompt == 0 else (behind - 1, layer(behind - 1))
            J = network.jacobian((prompt, "joint"), source=start, target=place, position=position)
            expected = oracle.jacobian(source, stream, position)[:, : position + 1].flatten(1)
            assert max(errors(J.dense(), expected)) <= BAR, (stream, source)
            X = torch.randn(J.shape[1], 2, generator=generator, dtype=torch.float64)
            assert max(errors(J.matmat(X), expected @ X)) <= BAR, (stream, source)
            truth, found = oracle.streams[stream][0, position].detach(), J.reconstruction
            assert (found.y - truth).norm() <= BAR * truth.norm()
            assert (found.estimate - truth).norm() <= BAR * (truth.norm() + found.estimate.norm() + J.offset.norm())


@pytest.mark.parametrize("name", tiny_models.DENSE)
def test_a_declared_family_is_the_same_by_its_structure(name: str) -> None:
    """Two roads to one map: primitive maps, and the model's own modules."""
    model, ids = tiny_models.DENSE[name](torch.float64), tiny_models.prompt_ids(*LENGTHS)
    with unchecked():  # `test_families` has its checks
        by_maps = detach(tiny_models.loaded(model), input_ids=ids, freeze="half")
    by_modules = pinned(model, ids=ids, freeze="half")
    assert (by_maps.route, by_modules.route) == ("frozen", "autograd")
    for prompt, length in enumerate(LENGTHS):
        one, other = (network.jacobian((prompt, "joint")) for network in (by_maps, by_modules))
        Y = torch.randn(one.shape[0], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected, found = (J.rmatmat(Y).view(length, -1) for J in (one, other))
        assert torch.all((found - expected).norm(dim=1) <= BAR * expected.norm(dim=1))
    J = by_modules.jacobian((1, "joint"))
    assert (J.offset - by_maps.jacobian((1, "joint")).offset).norm() <= BAR * (J.offset.norm() + J.y.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["StableLM", "BioGPT", "Helium"])
def test_lower_precisions_reconstruct_the_output(name: str, dtype: torch.dtype) -> None:
    network = detach(tiny_models.loaded(UNDECLARED[name](dtype)), input_ids=tiny_models.prompt_ids(*LENGTHS))
    assert isinstance(network, PinnedNetwork)
    assert network.reconstruction.norm_error <= {torch.float32: 1e-6}.get(dtype, 2e-2)
    assert network.passes.trace.branches == case(name, "gate")[2].passes.trace.branches
    assert network.dtype is network.jacobian(0).matmat(torch.ones(24, 1, dtype=dtype)).dtype is dtype


def test_half_precision_tells_w_from_one_plus_w() -> None:
    """Trained norms of Gemma have entries of 40 and more: both forms are then within a few per cent."""
    model = drawn(dense.gemma1(torch.bfloat16), torch.bfloat16, norm=40.0)
    network = pinned(model, ids=tiny_models.prompt_ids(6))
    for path, norm in network.passes.trace.norms.items():
        assert torch.equal(norm.scale, 1 + model.get_submodule(path).weight.float())


def test_what_a_model_scales_in_place_is_its_own_copy() -> None:
    model = undeclared.ctrl(torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = tiny_models.prompt_ids(*LENGTHS)
    network = detach(tiny_models.loaded(model), input_ids=ids)
    J = network.jacobian("joint")
    assert (J.matmat(J.x[:, None])[:, 0] + J.offset - J.y).norm() <= 1e-13 * J.y.norm()
    assert torch.equal(J.rmatmat(J.y[:, None]), J.rmatmat(J.y[:, None]))
    assert torch.equal(network.streams.embeddings, torch.cat([embeddings_of(model, tokens) for tokens in ids]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation != "detjac_observed"


def test_positions_of_a_padded_row_are_kept() -> None:
    model = undeclared.stablelm(torch.float64)
    (ids,) = tiny_models.prompt_ids(6)
    whole = detach(tiny_models.loaded(model), input_ids=ids)
    padded = detach(
        tiny_models.loaded(model),
        input_ids=[[0, 0, *ids]],
        attention_mask=[[0, 0, *[1] * 6]],
        position_ids=[[0, 0, *range(6)]],
    )
    assert errors(padded.jacobian(2).dense(), whole.jacobian(2).dense())[0] <= 1e-13


def test_padding_needs_positions_where_nobody_declares_them() -> None:
    """BioGPT counts the real tokens of a padded row, others do not: nothing in the modules says so."""
    loaded = tiny_models.loaded(UNDECLARED["BioGPT"](torch.float64))
    padded: dict[str, Any] = {"input_ids": [[1, 1, 5, 6]], "attention_mask": [[0, 0, 1, 1]]}
    with pytest.raises(InputError, match="give position_ids"):
        detach(loaded, **padded)
    assert detach(loaded, **padded, position_ids=[[0, 0, 0, 1]]).lengths == (2,)
    assert detach(loaded, input_ids=[[5, 6, 1]], attention_mask=[[1, 1, 0]]).lengths == (2,)


def test_a_layer_norm_whose_input_has_no_mean_is_centred_all_the_same() -> None:
    """On this prompt it is an RMS norm; its Jacobian is not."""
    model = undeclared.stablelm(torch.float64)
    with torch.no_grad():
        for writer in (model.model.embed_tokens.weight.T, *(w for n, w in model.named_parameters() if _writes(n))):
            writer.copy_(writer - writer.mean(0))
    ids = tiny_models.prompt_ids(7)
    network = detach(tiny_models.loaded(model), input_ids=ids)
    assert all(stream.mean(1).abs().max() < 1e-14 for stream in network.streams.residual)
    expected = OracleA(model, embeddings_of(model, ids[0])).jacobian("embeddings", "output", -1)
    assert max(errors(network.jacobian("joint").dense(), expected.flatten(1))) <= BAR


def test_threads_differentiate_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward mode has one level for the whole process."""
    J = case("StableLM", "gate")[2].jacobian((1, "joint"))
    inputs = torch.randn(2, J.shape[1], 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = [J.matmat(X) for X in inputs]
    run = AutogradSweeps._run

    def slow(self: AutogradSweeps, *args: Any) -> Tensor:
        time.sleep(0.05)
        return run(self, *args)

    monkeypatch.setattr(AutogradSweeps, "_run", slow)
    for found, expected in zip(at_once([partial(J.matmat, X) for X in inputs]), alone, strict=True):
        assert torch.equal(found, expected)


def _writes(name: str) -> bool:
    return name.endswith(("o_proj.weight", "down_proj.weight"))


def test_lora_adapters_run_with_the_modules_they_are_on() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj", "gate_proj", "down_proj"])
    adapted = peft.get_peft_model(undeclared.stablelm(torch.float64), config)
    drawn(adapted, torch.float64, seed=4)
    ids = tiny_models.prompt_ids(6)
    found = detach(tiny_models.loaded(adapted), input_ids=ids)
    J = found.jacobian("joint").dense()  # before the weights it shares are merged
    merged = detach(tiny_models.loaded(adapted.merge_and_unload()), input_ids=ids)
    assert found.route == merged.route == "autograd"
    assert errors(J, merged.jacobian("joint").dense())[0] <= 1e-13


class TestContract(OperatorTestCase):
    """The solver's contract, and its leading values."""

    def create_operator(self) -> Any:
        return case("StableLM", "gate")[2].jacobian((1, 2))

    def create_dense(self) -> Tensor:
        model, ids, _ = case("StableLM", "gate")
        return OracleA(model, embeddings_of(model, ids[1])).jacobian("embeddings", "output", -1)[:, 2]


def test_the_network_says_how_it_was_made() -> None:
    _, _, network = case("StableLM", "gate")
    assert "route='autograd'" in repr(network)
    assert network.family.name == "StableLmForCausalLM, by its structure"
    definition = network.jacobian(0).definition
    assert (definition["route"], definition["freeze"]) == ("autograd", "gate")
    assert network.coefficients["model.layers.1.input_layernorm.rstd.0"].shape == (1, 12, 1)
    assert network.coefficients["model.layers.1.self_attn.mixing.1"].shape == (1, 3, 5, 5)
    assert network.jacobians().shared_cost() == sum(LENGTHS)


def test_a_stream_that_embeddings_enter_in_an_unknown_way_is_not_decoded() -> None:
    network = pinned(tiny_models.DENSE["OPT post-norm"](torch.float64), ids=tiny_models.prompt_ids(4))
    at_the_embeddings = decode_right(network, torch.eye(16, 2))
    assert all(len(entries) == 10 for entries in at_the_embeddings)
    with refused("how the embeddings of OPTForCausalLM, by its structure enter its stream"):
        decode_right(network, torch.eye(24, 2))


def test_the_frozen_final_norm_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("StableLM", "Nemotron", "OLMo"):
        _, _, network = case(name, "gate")
        from detjac_lanczos.frozen.maps import apply_rowwise

        rows = torch.arange(sum(LENGTHS))
        found = apply_rowwise(network.tail.branches[0].chain, network.streams.residual[-1], rows)
        assert errors(found, network.streams.output)[0] <= 1e-14


def test_what_a_recognised_decoder_cannot_do_is_one_line(tmp_path: Any) -> None:
    _, _, network = case("StableLM", "gate")
    attempts: list[tuple[Callable[[], Any], type[DetjacError], str]] = [
        (lambda: network.replace(drop=[head(0, 0)]), UnsupportedModelError, "no family declares it"),
        (lambda: network.save(tmp_path), UnsupportedModelError, "cannot be saved"),
        (lambda: PinnedNetwork.load(tmp_path, network.loaded), InputError, "use DetachedNetwork.load"),
        (lambda: network.program(0, layer(1)), UnsupportedModelError, "no program of maps"),
        (lambda: network.jacobian(0, source=layer(2), target=layer(1)), InputError, "lies before"),
        (lambda: network.jacobian(0, target=probe(torch.ones(2, 5))), InputError, "width 5"),
        (lambda: network.apply(torch.ones(1, 3, 24, dtype=torch.float64)), InputError, "takes inputs"),
    ]
    for attempt, kind, message in attempts:
        with pytest.raises(kind, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    granite = pinned(tiny_models.DENSE["Granite"](torch.float64), ids=tiny_models.prompt_ids(4))
    with pytest.raises(InputError, match="where the attention branch of GraniteForCausalLM"):
        granite.jacobian(0, target=attention(1))
    capped = pinned(tiny_models.DENSE["Gemma 2"](torch.float64), ids=tiny_models.prompt_ids(4))
    assert capped.jacobian(0).dense().shape == (24, 24)
    with pytest.raises(UnsupportedModelError, match="no affine function of its output"):
        capped.jacobian(0, target="logits")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "Mamba": (
        lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2)
        ),
        r"a state-space layer at backbone\.layers\.0\.mixer \(MambaMixer\)",
    ),
    "Qwen3-Next": (
        lambda: transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(**SIZES | {"num_experts": 4})),
        r"linear attention at .*attn \(Qwen3NextGatedDeltaNet\), routed experts at .*\(Qwen3NextSparseMoeBlock\)",
    ),
    "Gemma 3n": (
        lambda: transformers.Gemma3nForCausalLM(
            transformers.Gemma3nTextConfig(
                **SIZES
                | {"num_hidden_layers": 5, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 40}
                | {"layer_types": ["sliding_attention"] * 4 + ["full_attention"]}
                | {"activation_sparsity_pattern": [0.0] * 5}
            )
        ),
        r"model\.layers\.0\.altup \(Gemma3nTextAltUp\), .*model\.layers\.0\.laurel \(Gemma3nTextLaurelBlock\)",
    ),
    "Gemma 4": (
        lambda: transformers.Gemma4ForCausalLM(
            transformers.Gemma4TextConfig(**SIZES | {"vocab_size_per_layer_input": 40})
        ),
        r"per-layer embeddings at model\.layers\.0 \(Gemma4TextDecoderLayer\)",
    ),
    "Gemma 4 with experts": (
        lambda: transformers.Gemma4ForCausalLM(
            transformers.Gemma4TextConfig(
                **SIZES
                | {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4}
                | {"top_k_experts": 2, "moe_intermediate_size": 8}
            )
        ),
        r"routed experts at .*\.router \(Gemma4TextRouter\), routed experts at .*\.experts \(Gemma4TextExperts\)",
    ),
    "Jamba": (
        lambda: transformers.JambaForCausalLM(
            transformers.JambaConfig(**SIZES | {"num_hidden_layers": 8, "num_experts": 4})
        ),
        r"a state-space layer at model\.layers\.0\.mamba \(JambaMambaMixer\)",
    ),
    "RWKV": (
        lambda: transformers.RwkvForCausalLM(
            transformers.RwkvConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2)
        ),
        r"a recurrence at rwkv\.blocks\.0\.attention \(RwkvSelfAttention\)",
    ),
    "RecurrentGemma": (
        lambda: transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(**SIZES)),
        r"a recurrence at .*temporal_block \(RecurrentGemmaRecurrentBlock\)",
    ),
    "Falcon-H1": (
        lambda: transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**SIZES)),
        r"a state-space layer at model\.layers\.0\.mamba \(FalconH1Mixer\)",
    ),
    "FlexOlmo": (
        lambda: transformers.FlexOlmoForCausalLM(transformers.FlexOlmoConfig(**SIZES | {"num_experts": 4})),
        r"routed experts at model\.layers\.0\.mlp \(FlexOlmoSparseMoeBlock\)",
    ),
    "MPT": (
        lambda: transformers.MptForCausalLM(
            transformers.MptConfig(vocab_size=40, d_model=24, n_layers=2, n_heads=4, max_seq_len=64)
        ),
        r"transformer\.blocks\.0\.attn \(MptAttention\)",
    ),
    "BERT": (
        lambda: transformers.BertLMHeadModel(
            transformers.BertConfig(
                vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
            )
        ),
        r"bert\.encoder\.layer\.0\.attention \(BertAttention\)",
    ),
    "T5": (
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=40, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4)
        ),
        "encoder-decoder",
    ),
    "CSM": (
        lambda: transformers.CsmForConditionalGeneration(transformers.CsmConfig(**SIZES)),
        "CsmForConditionalGeneration embeds its tokens by a CsmBackboneModelEmbeddings, not by one table",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_named_before_any_work(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        recognise(on_meta(make))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Musicgen", "MusicgenMelody"])
def test_a_model_of_several_text_models_is_named(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")
    model = on_meta(lambda: getattr(transformers, f"{kind}ForConditionalGeneration")(config()))
    for read in (family_or_structure, context_length_of):
        with pytest.raises(
            UnsupportedModelError, match=rf"{kind}\S+ \(musicgen\S*\) is made of several text models"
        ) as caught:
            read(model)
        assert "\n" not in str(caught.value)


def test_what_feeds_the_blocks_beside_the_embeddings_is_named() -> None:
    """A second table of tokens, and rotary positions that learn."""
    model = undeclared.stablelm(torch.float32)
    recognise(model)
    model.model.rotary_emb.stretch = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(UnsupportedModelError, match=r"model\.rotary_emb \(\w+RotaryEmbedding\)"):
        recognise(model)
    model = undeclared.stablelm(torch.float32)
    model.model.again = torch.nn.Embedding(*model.model.embed_tokens.weight.shape)
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    for it in (model, adapted):
        with pytest.raises(UnsupportedModelError, match=r"not understood: model\.again \(Embedding\)"):
            recognise(it)


@pytest.mark.parametrize("given", [{"input_ids": [1, 2, 3]}, {"inputs_embeds": torch.ones(3, 24)}])
def test_a_declared_model_without_a_table_of_tokens_is_named(given: dict[str, Any]) -> None:
    model = tiny_models.llama()
    model.model.embed_tokens = torch.nn.Sequential(model.model.embed_tokens)
    with pytest.raises(UnsupportedModelError, match="embeds its tokens by a Sequential, not by one table") as caught:
        detach((model, None), **given)
    assert "\n" not in str(caught.value)


def test_a_model_that_names_no_table_of_tokens_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(model: Any) -> Any:
        raise NotImplementedError

    model = tiny_models.llama()
    monkeypatch.setattr(type(model), "get_input_embeddings", unknown)
    with pytest.raises(UnsupportedModelError, match="embeds its tokens by nothing that it names"):
        token_table_of(model)


def test_the_refusal_lists_what_is_supported() -> None:
    model = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=40, hidden_size=24, num_hidden_layers=2))
    model.forward = None
    message = r"^not understood: a state-space layer at backbone.*MambaMixer.*; .*supported: Llama 2"
    with pytest.raises(UnsupportedModelError, match=message):
        detach(tiny_models.loaded(model), input_ids=[1, 2, 3])


class ChangedForCausalLM(transformers.LlamaForCausalLM):
    """A Llama that no family declares."""


class OtherRMSNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x.abs()


class OtherMLP(modeling_llama.LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).tanh())


class ClampedMLP(modeling_llama.LlamaMLP):
    """A clamp that no entry of the prompt reaches."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-50, 50))


class GatedLayer(modeling_llama.LlamaDecoderLayer):
    """A weak gate that reads what it multiplies."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(*args, **kwargs)
        return y * (1 + 0.01 * torch.sin(y))


class LookingAheadLayer(modeling_llama.LlamaDecoderLayer):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(*args, **kwargs)
        return y + 0.01 * y.mean(1, keepdim=True)


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


class SilentRMSNorm(modeling_llama.LlamaRMSNorm):
    """Keeps no epsilon; the weight may be stored as weight − 1."""

    plus = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.plus + self.weight) * x * (x.square().mean(-1, keepdim=True) + 0.01).rsqrt()


class ShiftedSilentRMSNorm(SilentRMSNorm):
    plus = 1.0


class SilentLayerNorm(torch.nn.LayerNorm):
    """Keeps no epsilon; its bias is larger than what it normalises."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, 0.01)


@pytest.mark.parametrize(
    ("make", "kind", "attribute"),
    [
        (dense.seed_oss, SilentRMSNorm, "variance_epsilon"),
        (dense.seed_oss, ShiftedSilentRMSNorm, "variance_epsilon"),
        (dense.starcoder2, SilentLayerNorm, "eps"),
    ],
    ids=["weight", "1 + weight", "weight and bias"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_an_epsilon_that_no_norm_keeps_is_read_off_its_values(
    make: Any, kind: Any, attribute: str, dtype: torch.dtype
) -> None:
    model = make(dtype)
    for module in model.modules():
        if hasattr(module, attribute):
            module.__class__ = kind
            delattr(module, attribute)
    network = pinned(model, ids=tiny_models.prompt_ids(6))
    for norm in (*network.passes.trace.norms.values(), *network.passes.trace.final):
        assert norm.eps == pytest.approx(0.01, rel=1e-9 if dtype is torch.float64 else 1e-2)
    J = network.jacobian("joint")
    bar = 1e-12 if dtype is torch.float64 else 1e-5
    assert (J.matmat(J.x[:, None])[:, 0] + J.offset - J.y).norm() <= bar * J.y.norm()


CHANGES = [
    ("post_attention_layernorm", OtherRMSNorm, r"post_attention_layernorm \(OtherRMSNorm\) does not compute"),
    ("mlp", OtherMLP, r"layers\.1\.mlp \(OtherMLP\) multiplies its activation by something other"),
    ("mlp", ClampedMLP, r"fails its self-check: model\.layers\.1\.mlp is not affine"),
    ("", GatedLayer, r"fails its self-check: what model\.layers\.1 adds is not affine"),
    ("", LookingAheadLayer, "fails its self-check: later positions"),
]


@pytest.mark.parametrize(("path", "kind", "message"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wrong_recognition_is_refused(path: str, kind: Any, message: str, dtype: torch.dtype) -> None:
    """The structure is Llama's, the values are not."""
    model = drawn(ChangedForCausalLM(transformers.LlamaConfig(**SIZES)), dtype)
    ids = tiny_models.prompt_ids(6)
    assert detach(tiny_models.loaded(model), input_ids=ids).route == "autograd"
    model.model.layers[1].get_submodule(path).__class__ = kind
    with refused(message):
        detach(tiny_models.loaded(model), input_ids=ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_that_its_own_function_lets_look_ahead_is_refused(dtype: torch.dtype) -> None:
    """Fused attention sees later positions where a module says so; eager attention obeys its mask, which is causal."""
    for implementation in ("eager", "sdpa"):
        model = undeclared.helium(dtype)
        model.set_attn_implementation(implementation)
        for block in model.model.layers:
            block.self_attn.is_causal = False
        if implementation == "eager":
            assert detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6)).route == "autograd"
        else:
            with refused(r"layers\.0\.self_attn attends to later positions"):
                detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))


class BentLayer(modeling_llama.LlamaDecoderLayer):
    """Gates what it adds to the stream by the stream."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        added = super().forward(hidden_states, *args, **kwargs) - hidden_states
        return hidden_states + added * torch.sigmoid(hidden_states)


HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALF
def test_a_gate_that_no_module_shows_is_refused_beside_a_large_stream(dtype: torch.dtype) -> None:
    """Attention of Qwen 3.5 ends in σ(g) ∘ o, a function; its branches are small here beside the stream."""
    config = transformers.Qwen3_5TextConfig(**SIZES | {"layer_types": ["full_attention"] * SIZES["num_hidden_layers"]})
    torch.manual_seed(0)
    model = transformers.Qwen3_5ForCausalLM(config).eval().to(dtype)
    with refused(r"self_attn is not affine"):
        detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))


@HALF
@pytest.mark.parametrize("path", ["self_attn.v_proj", "mlp.down_proj"])
def test_a_linear_module_that_bends_is_refused_in_half_precision(path: str, dtype: torch.dtype) -> None:
    model = drawn(ChangedForCausalLM(transformers.LlamaConfig(**SIZES)), dtype)
    module = model.model.layers[1].get_submodule(path)
    module.forward = types.MethodType(lambda self, x: torch.tanh(type(self).forward(self, x)), module)
    with refused("is not affine|is not its slope"):
        detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))


@HALF
def test_a_block_that_bends_what_it_adds_is_refused_beside_a_large_stream(dtype: torch.dtype) -> None:
    model = drawn(ChangedForCausalLM(transformers.LlamaConfig(**SIZES)), dtype)
    model.model.embed_tokens.weight.data *= 16
    ids = tiny_models.prompt_ids(6)
    assert detach(tiny_models.loaded(model), input_ids=ids).route == "autograd"
    model.model.layers[1].__class__ = BentLayer
    with refused("is not affine|is not its slope"):
        detach(tiny_models.loaded(model), input_ids=ids)


def test_a_clip_that_the_prompt_leaves_alone_is_refused() -> None:
    ids = tiny_models.prompt_ids(6)
    assert detach(tiny_models.loaded(undeclared.olmo(torch.float32)), input_ids=ids).route == "autograd"
    for clip in (0.5, 2.0, 30.0):
        with refused(r"fails its self-check: model\.layers\.0\.self_attn is not affine"):
            detach(tiny_models.loaded(undeclared.olmo(torch.float32, clip_qkv=clip)), input_ids=ids)


def test_parts_are_checked_where_a_prompt_is_too_long_for_all_inputs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = drawn(ChangedForCausalLM(transformers.LlamaConfig(**SIZES)), torch.float32)
    network = pinned(model, ids=tiny_models.prompt_ids(6))
    found: list[Any] = []
    monkeypatch.setattr(part_check, "require", lambda _, claims: found.append(claims))
    part_check.require_affine_parts(network)
    once, found = found, []
    monkeypatch.setattr(part_check, "ROWS_AT_ONCE", 24)
    part_check.require_affine_parts(network)
    assert len(found) == len(once) == 3 * 3 * network.blocks
    assert [claim for [(claim, _, _)] in found] == [claim for [(claim, _, _)] in once]


def test_values_that_overflow_are_left_alone_at_large_inputs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, network = case("StableLM", "gate")
    rows = torch.zeros(10, 4, dtype=torch.float64)
    monkeypatch.setattr(part_check, "_values", lambda *_: [part_check.Value("the part", rows, torch.zeros(10))])
    monkeypatch.setattr(part_check, "ROWS_AT_ONCE", 10 * LENGTHS[0])
    rows[4:] = float("inf")
    part_check.require_affine_parts(network)
    rows[3] = float("inf")
    with refused("the part is not affine"):
        part_check.require_affine_parts(network)


@pytest.mark.parametrize("make", [undeclared.persimmon, undeclared.stablelm])
def test_offloaded_weights_and_inference_mode_change_nothing(make: Any, tmp_path: Path) -> None:
    ids = tiny_models.prompt_ids(6)
    expected = detach(tiny_models.loaded(make(torch.float32)), input_ids=ids).jacobian("joint").dense()
    model = make(torch.float32)
    with torch.inference_mode():
        assert torch.equal(detach(tiny_models.loaded(model), input_ids=ids).jacobian("joint").dense(), expected)
        born_there = make(torch.float32)
    with pytest.raises(ModelError, match=r"made in torch\.inference_mode"):
        detach(tiny_models.loaded(born_there), input_ids=ids)
    for model in (on_disk(make(torch.float32), tmp_path), in_host_memory(make(torch.float32))):
        J = detach(tiny_models.loaded(model), input_ids=ids).jacobian("joint")
        assert torch.equal(J.dense(), expected)
        assert max(errors(J.rmatmat(torch.eye(J.shape[0])).T, expected)) <= 2e-6


def test_an_activation_without_a_ratio_is_named() -> None:
    config = transformers.ArceeConfig(**SIZES | {"hidden_act": "sigmoid"})
    model = drawn(transformers.ArceeForCausalLM(config), torch.float64)
    with refused("Sigmoid is not 0 at z = 0"):
        detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))


@pytest.mark.parametrize("freeze", ["gate", "up", "half"])
@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma])
def test_declared_families_pass_the_same_check(make: Any, freeze: Any) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        self_check(detach(tiny_models.loaded(make(dtype, bias=True)), input_ids=[1, 2, 3, 4], freeze=freeze))


@pytest.mark.parametrize("make", [tiny_models.llama, undeclared.helium])
def test_an_output_of_zero_is_sound(make: Any) -> None:
    model = make(torch.float32)
    model.model.norm.weight.data.zero_()
    network = detach(tiny_models.loaded(model), input_ids=[1, 2, 3, 4])
    self_check(network)
    assert not network.jacobian(0).dense().any()


@pytest.mark.parametrize(
    ("part", "message"),
    [("activation", "does not give the model's output"), ("mixing", "does not give the model's output")],
)
def test_a_wrong_factor_is_found(part: str, message: str) -> None:
    network = detach(tiny_models.loaded(tiny_models.llama(torch.float32)), input_ids=[1, 2, 3, 4])
    name = next(name for name in network.coefficients if part in name)
    with refused(message):
        self_check(replace(network, coefficients={**network.coefficients, name: 1.1 * network.coefficients[name]}))


def test_every_prompt_is_compared_with_the_models_own_pass() -> None:
    network = detach(tiny_models.loaded(tiny_models.llama(torch.float32)), input_ids=[[1, 2, 3, 4], [5, 6]])
    output = network.streams.output.clone()
    output[network.start_of(1) :] *= 1.1
    with refused("its pass is not the model's own on prompt 1"):
        check(replace(network, streams=replace(network.streams, output=output)))


def test_an_attention_of_a_thousandth_more_is_not_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = tiny_models.llama(torch.float32), modeling_llama.eager_attention_forward
    model.config._attn_implementation = "eager"

    def louder(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        output, weights = eager(*args, **kwargs)
        return 1.001 * output, weights

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", louder)
    with refused("its pass is not the model's own"):
        detach(tiny_models.loaded(model), input_ids=[1, 2, 3, 4])


def test_a_transpose_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    network = detach(tiny_models.loaded(tiny_models.llama(torch.float32)), input_ids=[1, 2, 3, 4])
    weight = next(step.weight for step in network.stages[0].branches[0].chain if isinstance(step, Linear))
    transposed = weight.apply_transposed
    monkeypatch.setattr(weight, "apply_transposed", lambda *args, **around: 1.01 * transposed(*args, **around))
    with refused("the transpose of its Jacobian is not"):
        self_check(network)


def test_an_error_that_is_no_number_is_no_small_one() -> None:
    _, _, network = case("StableLM", "gate")
    with refused("something .* error nan"):
        require(network, [("something", float("nan"), 1.0)])


def test_a_model_is_checked_in_full_once_for_each_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from detjac_lanczos.operators import self_check as module

    checked: list[Any] = []
    monkeypatch.setattr(module, "self_check", checked.append)
    loaded = tiny_models.loaded(tiny_models.llama(torch.float32))
    for freeze in ("gate", "gate", "up", "gate"):
        check(detach(loaded, input_ids=[1, 2, 3], freeze=freeze))  # type: ignore[arg-type]
    assert [network.freeze for network in checked] == ["gate", "up"]
    known = len(module._passed)
    del loaded, checked[:]
    gc.collect()
    assert len(module._passed) < known


class ByKeywords(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OnTokens(transformers.LlamaForCausalLM):
    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        return super().forward(input_ids, **kwargs)


class OnTokensInside(transformers.LlamaForCausalLM):
    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        kwargs.pop("inputs_embeds", None)
        return super().forward(input_ids, **kwargs)


class OnShapesOfTokens(transformers.LlamaForCausalLM):
    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        assert input_ids.shape
        return super().forward(input_ids, **kwargs)


def test_a_forward_takes_embeddings_by_whatever_name() -> None:
    model, ids = tiny_models.llama(), [1, 2, 3, 4]
    expected = detach((model, None), input_ids=ids).jacobian(1).dense()
    model.__class__ = ByKeywords
    network = detach((model, None), input_ids=ids)
    assert network.route == "autograd"
    torch.testing.assert_close(network.jacobian(1).dense(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (OnTokens, "cannot be called with inputs_embeds alone"),
        (OnTokensInside, r"runs on tokens, and not on inputs_embeds \(You must"),
        (OnShapesOfTokens, r"runs on tokens, and not on inputs_embeds \('NoneType'"),
    ],
)
def test_a_forward_that_takes_none_is_refused(kind: type, words: str) -> None:
    model = tiny_models.llama()
    model.__class__ = kind
    with refused(words):
        detach((model, None), input_ids=[1, 2, 3, 4])

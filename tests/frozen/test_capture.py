"""Capture leaves the caller's model untouched, duplicates no weight, and refuses what it cannot freeze exactly."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detjac_kernels.rebuilt_mixing import mix_rebuilt
from detjac_lanczos.errors import InputError, ModelError, UnsupportedModelError
from detjac_lanczos.frozen import attention
from detjac_lanczos.frozen.attention import Tiles
from detjac_lanczos.frozen.observed import observed_copy
from detjac_lanczos.frozen.precision import LiftToFloat64, require_exact_products
from detjac_lanczos.frozen.structural_copy import structural_copy
from detjac_lanczos.frozen.words.attention import keep_sums, keep_weights
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.operators import detach
from tests import tiny_models
from tests.every_block import unchecked
from tests.oracles import embeddings_of
from tests.tiny_models.dense import DENSE, gemma1, opt
from tests.tiny_models.moe import MOE

pytestmark = pytest.mark.usefixtures("one_thread")

MAKERS: list[Callable[..., Any]] = [tiny_models.llama, tiny_models.gemma]
IDS = tiny_models.prompt_ids(tiny_models.LENGTH)[0]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS]), use_cache=False).logits


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def state(model: Any) -> dict[str, Any]:
    """Everything of a model that a capture might disturb."""
    return {
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "pointers": {name: (value.data_ptr(), value._version) for name, value in tensors(model).items()},
        "values": {name: value.clone() for name, value in tensors(model).items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    values, now = before.pop("values"), after.pop("values")
    assert before == after
    assert all(torch.equal(values[name], now[name]) for name in values)


@pytest.mark.parametrize("make", MAKERS)
def test_the_model_is_as_before(make: Any) -> None:
    model = make(torch.float32)
    expected, before = logits(model), state(model)
    detach(tiny_models.loaded(model), input_ids=IDS, freeze="half")
    assert_same(before, state(model))
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("make", MAKERS)
def test_the_model_is_as_before_after_an_error_in_the_forward_pass(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(torch.float32)
    expected, before = logits(model), state(model)
    last = type(model.model.layers[-1].mlp)

    def fails(self: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("out of something")

    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", fails)
        with pytest.raises(ModelError, match=r"forward pass of .* fails \(out of something\)"):
            detach(tiny_models.loaded(model), input_ids=IDS)
    assert_same(before, state(model))
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*DENSE, *MOE])
def test_the_observed_pass_is_the_models_own_eager_pass_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    model = (DENSE | MOE)[name](dtype)
    model.set_attn_implementation("eager")
    if name in MOE:
        model.set_experts_implementation("eager")
    with torch.no_grad():
        out = model(input_ids=torch.tensor([IDS]), use_cache=False, output_hidden_states=True)
    # Checks of every family in the other two are in `test_own_pass`.
    with nullcontext() if dtype is torch.float16 else unchecked():
        streams = detach(tiny_models.loaded(model), input_ids=IDS).streams
    assert torch.equal(streams.output, out.hidden_states[-1][0])
    assert torch.equal(streams.model_output, out.hidden_states[-1][0])


def test_the_observed_pass_of_wide_biased_projections_is_the_models_own_bit_for_bit() -> None:
    """In sums of many terms it shows whether a bias is where they begin or is added to them."""
    model = opt(torch.float32, hidden_size=896, word_embed_proj_dim=896, ffn_dim=128, num_hidden_layers=1)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS]), use_cache=False, output_hidden_states=True).hidden_states[-1][0]
    with unchecked():
        assert torch.equal(detach(tiny_models.loaded(model), input_ids=IDS).streams.output, expected)


@pytest.mark.parametrize("make", MAKERS)
def test_a_model_in_training_mode_is_frozen_in_eval_mode_and_left_in_training_mode(make: Any) -> None:
    model = make(attention_dropout=0.5)
    expected = detach(tiny_models.loaded(model), input_ids=IDS)
    model.train()
    found = detach(tiny_models.loaded(model), input_ids=IDS)
    assert all(module.training for module in model.modules())
    assert torch.equal(found.streams.output, expected.streams.output)
    assert torch.equal(found.streams.model_output, expected.streams.model_output)
    assert torch.equal(found.jacobian(0).dense(), expected.jacobian(0).dense())


def test_a_model_without_blocks_is_refused_in_one_line() -> None:
    model = tiny_models.llama(num_hidden_layers=0)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no blocks, and nothing to freeze"):
        detach(tiny_models.loaded(model), input_ids=IDS)


def test_the_callers_hooks_stay_with_the_caller() -> None:
    model = tiny_models.llama()
    expected = detach(tiny_models.loaded(model), input_ids=IDS).jacobian(0).dense()
    calls: list[str] = []
    handles = [
        model.model.layers[1].register_forward_hook(lambda *_: calls.append("after")),
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append("before")),
        model.model.norm.register_forward_hook(lambda m, a, out: out * 2),
    ]
    with pytest.warns(UserWarning, match=r"forward hooks on .*\.0\.mlp, .*\.layers\.1, model\.norm have no part"):
        network = detach(tiny_models.loaded(model), input_ids=IDS)
    assert not calls
    assert torch.equal(network.jacobian(0).dense(), expected)
    logits(model)
    assert sorted(calls) == ["after", "before"]
    assert all(handle.id in handle.hooks_dict_ref() for handle in handles)
    for handle in handles[1:]:
        handle.remove()
    with pytest.warns(UserWarning, match=r"forward hooks on model\.layers\.1 have no part"):
        detach(tiny_models.loaded(model), input_ids=IDS)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_the_copy_holds_the_very_tensors(make: Any, tied: bool) -> None:
    model = make(tie_word_embeddings=tied)
    for twin in (structural_copy(model), observed_copy(model)):
        ours, theirs = tensors(model), tensors(twin)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if "inv_freq" in name:
                assert theirs[name] is not value
            else:
                assert theirs[name] is value, name
        assert (twin.lm_head.weight is twin.model.embed_tokens.weight) == tied
        assert twin.config is not model.config
        assert not {id(m) for m in twin.modules()} & {id(m) for m in model.modules()}


class Bytes(TorchDispatchMode):
    """Size of the largest storage that any operation made, beside the count of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, value.untyped_storage().nbytes())
                self.total += value.untyped_storage().nbytes()
        return out


@pytest.mark.parametrize("make", MAKERS)
def test_the_copy_allocates_nothing_of_a_weights_size(make: Any) -> None:
    model = make(torch.float32, hidden_size=64, intermediate_size=160)
    with Bytes() as counted:
        observed_copy(model)
    rotary = sum(value.nbytes for name, value in tensors(model).items() if "inv_freq" in name)
    assert counted.total <= rotary


@pytest.mark.parametrize("make", MAKERS)
def test_a_capture_allocates_no_weight(make: Any) -> None:
    """On two tokens every activation is smaller than every weight matrix, so a copied weight would stand out."""
    model = make(torch.float32, hidden_size=64, intermediate_size=160, head_dim=16, vocab_size=60)
    loaded = tiny_models.loaded(model)
    smallest = min(p.nbytes for p in model.parameters() if p.ndim == 2)
    require_exact_products(torch.float32, torch.device("cpu"))  # measured once in a process, on a product of its own
    with Bytes() as counted:
        network = detach(loaded, input_ids=[3, 5])
    assert counted.largest < smallest
    ours = {p.data_ptr() for p in model.parameters()}
    for stage in network.stages:
        for branch in stage.branches:
            for step in branch.chain:
                if hasattr(step, "weight"):
                    assert step.weight.parameter.data_ptr() in ours


def test_two_additive_registry_entries_and_no_more() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    before = dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)
    detach(tiny_models.loaded(tiny_models.llama()), input_ids=IDS)
    for mapping, old in zip((AttentionInterface, AttentionMaskInterface), before, strict=True):
        now = dict(mapping._global_mapping)
        assert now.keys() - old.keys() <= {attention.NAME}
        assert all(now[name] is value for name, value in old.items())
        assert attention.NAME in now


def test_the_registries_are_written_through_their_public_names_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    written: list[str] = []
    for registry in (AttentionInterface, AttentionMaskInterface):
        monkeypatch.setattr(registry, "register", lambda name, _: written.append(name))
        monkeypatch.delattr(registry, "_global_mapping")
    attention._register_once.cache_clear()
    for _ in range(2):
        attention.register()
    attention._register_once.cache_clear()
    assert written == [attention.NAME] * 2


@pytest.mark.parametrize("softcap", [None, 80.0])
def test_weights_are_made_again_as_exactly_where_scores_are_large(softcap: float | None) -> None:
    """A log-sum-exp of some hundred is rounded by 1e-5 in float32: that would be the error of every weight."""
    heads, n, width = 2, 64, 32
    generator = torch.Generator().manual_seed(0)
    query, key = (8 * torch.randn(heads, n, width, generator=generator) for _ in range(2))
    attended = attention.Attended(query, key, None, width**-0.5, softcap)
    everything = range(n)
    scores = attention._scores(query[None], key[None], attended, None, everything, everything)[0]
    scores = scores + torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
    weights = torch.softmax(scores, dim=-1)
    lse, query_scale = torch.empty(heads, n), torch.empty(heads, n)
    keep_sums("block 1", lse, query_scale, everything, everything, scores, weights)
    first, columns = torch.zeros(n, dtype=torch.int64), torch.eye(n).repeat(heads, 1, 1)
    again = mix_rebuilt(query, key, lse, first, columns, scaling=width**-0.5, softcap=softcap, query_scale=query_scale)
    assert lse.max() > 60
    assert (again - weights).norm() <= 1e-7 * weights.norm()


@pytest.mark.parametrize("make", MAKERS)
def test_threads_capturing_at_once_get_what_each_gets_alone(make: Any) -> None:
    loaded = tiny_models.loaded(make())
    prompts = tiny_models.prompt_ids(12, 9, 12, 5)
    alone = [detach(loaded, input_ids=ids, freeze="half").coefficients for ids in prompts]
    found: dict[int, Any] = {}
    start = threading.Barrier(len(prompts))

    def work(index: int) -> None:
        start.wait()
        for _ in range(3):
            found[index] = detach(loaded, input_ids=prompts[index], freeze="half").coefficients

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(alone):
        assert found[index].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[index][name], value), name


@pytest.mark.parametrize("make", MAKERS)
def test_prompts_captured_together_are_as_alone(make: Any) -> None:
    loaded = tiny_models.loaded(make(bias=True))
    prompts = tiny_models.prompt_ids(12, 1, 6)
    together = detach(loaded, input_ids=prompts)
    for index, ids in enumerate(prompts):
        alone = detach(loaded, input_ids=ids)
        one, other = together.jacobian((index, "joint")), alone.jacobian("joint")
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
        assert (one.dense() - other.dense()).norm() <= 1e-14 * other.dense().norm()
        assert (one.offset - other.offset).norm() <= 1e-14 * other.y.norm()


@pytest.mark.parametrize("kind", ["rope", "linear", "dynamic"])
def test_rotary_buffers_that_a_forward_pass_rewrites_are_not_shared(kind: str) -> None:
    rope = {"rope_type": "default" if kind == "rope" else kind, "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_models.llama(max_position_embeddings=64, rope_parameters=rope)
    before = state(model)
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(60)[0])
    assert_same(before, state(model))
    assert network.reconstruction.relative_error <= 1e-13


@pytest.mark.parametrize("kind", ["dynamic", "yarn"])
def test_stretched_frequencies_lead_beyond_the_trained_length(kind: str) -> None:
    """Each prompt runs as on a model that never ran another: dynamic frequencies follow its own length."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 3.0}
    model = tiny_models.llama(max_position_embeddings=8, rope_parameters=rope)
    loaded = tiny_models.loaded(model)
    assert loaded.context_length == 24
    prompts = tiny_models.prompt_ids(20, 12, 6)
    together = detach(loaded, input_ids=prompts)
    model(torch.tensor([prompts[0] + prompts[1][:4]]))  # the caller's own frequencies are stretched from here on
    for index, ids in enumerate(prompts):
        new = model_as_new(model)
        with LiftToFloat64(), torch.no_grad():
            expected = new(torch.tensor([ids])).logits[0, -1]
        alone = detach(loaded, input_ids=ids)
        for network, prompt in ((together, index), (alone, 0)):
            logits = network.streams.logits[prompt]
            assert (logits - expected).norm() <= 1e-12 * expected.norm()
            assert network.jacobian((prompt, 0)).reconstruction.norm_error <= 1e-13
            ordinary = network.jacobian((prompt, 0), frozen=False)
            assert torch.isfinite(ordinary.matmat(ordinary.x[:, None])).all()
    with pytest.raises(InputError, match="context is 24"):
        detach(loaded, input_ids=prompts[0] + prompts[1][:5])


def model_as_new(model: Any) -> Any:
    """The same weights in a model that never ran."""
    new = type(model)(model.config).to(torch.float64)
    new.load_state_dict(model.state_dict())
    return new.eval()


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = inner.weight, inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


def test_a_linear_module_replaced_by_something_else_is_refused() -> None:
    model = tiny_models.llama()
    model.model.layers[1].mlp.down_proj = Wrapped(model.model.layers[1].mlp.down_proj)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.mlp\.down_proj is a Wrapped"):
        detach(LoadedModel(model, None, "patched", ""), input_ids=IDS)


def test_another_norm_is_refused() -> None:
    model = tiny_models.llama()
    model.model.layers[2].input_layernorm = nn.LayerNorm(24).double()
    with pytest.raises(UnsupportedModelError, match=r"blocks\.2\.input_layernorm is a LayerNorm"):
        detach(LoadedModel(model, None, "patched", ""), input_ids=IDS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [tiny_models.gemma, gemma1])
def test_attention_to_later_positions_is_refused(make: Any, dtype: torch.dtype) -> None:
    """Gemma's mask is causal where it has one, and its sdpa, which gets none, is not."""
    model = make(dtype, use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.self_attn attends to later positions"):
        detach(tiny_models.loaded(model), input_ids=IDS)


@pytest.mark.parametrize(("queries", "keys"), [(range(3), range(3)), (range(2, 4), range(1, 4))])
@pytest.mark.parametrize(
    "keep",
    [
        partial(keep_weights, "block 1", torch.zeros(1, 4, 4)),
        partial(keep_sums, "block 1", torch.zeros(1, 4), torch.zeros(1, 4)),
    ],
)
def test_a_weight_of_the_very_next_position_is_refused(queries: range, keys: range, keep: Tiles) -> None:
    visible = torch.tensor([[1.0 if key <= query else 0.0 for key in keys] for query in queries])[None]
    keep(queries, keys, visible, visible)
    visible[0, 0, keys.index(queries.start + 1)] = 0.1
    with pytest.raises(UnsupportedModelError, match="block 1 attends to later positions"):
        keep(queries, keys, visible, visible)


def test_an_unsupported_family_is_refused_with_the_list() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, state_size=4, vocab_size=10))
    with pytest.raises(UnsupportedModelError, match=r"MambaForCausalLM.*supported: Llama .*Gemma 3"):
        detach(tiny_models.loaded(model), input_ids=[1, 2])


def test_the_copy_of_an_offloaded_model_allocates_nothing_of_a_weights_size() -> None:
    from accelerate import cpu_offload

    model = tiny_models.llama(torch.float32, hidden_size=64, intermediate_size=160)
    plain = logits(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    rotary = sum(value.nbytes for name, value in tensors(model).items() if "inv_freq" in name)
    with Bytes() as counted:
        twin = observed_copy(model)
    assert counted.total <= rotary
    assert torch.allclose(logits(twin), plain, atol=1e-5)
    assert torch.equal(logits(model), plain)


def test_a_model_dispatched_by_accelerate_with_its_weights_in_place_works() -> None:
    from accelerate import dispatch_model

    model = tiny_models.llama()
    expected = detach(tiny_models.loaded(model), input_ids=IDS).jacobian(0).dense()
    dispatched = dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in dispatched.modules())
    before = state(dispatched)
    network = detach(tiny_models.loaded(dispatched), input_ids=IDS)
    assert_same(before, state(dispatched))
    assert torch.equal(network.jacobian(0).dense(), expected)


def test_a_module_that_cannot_be_copied_is_named() -> None:
    model = tiny_models.llama()
    model.model.layers[1].self_attn.guard = threading.Lock()
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.self_attn .*cannot be copied"):
        detach(LoadedModel(model, None, "locked", ""), input_ids=IDS)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("part", "value"), [("layers.0.mlp.down_proj", float("nan")), ("norm", float("inf"))])
def test_a_forward_pass_that_is_not_finite_is_refused(make: Any, part: str, value: float) -> None:
    model = make()
    model.model.get_submodule(part).weight.data.view(-1)[0] = value
    with pytest.raises(ModelError, match="not finite"):
        detach(LoadedModel(model, None, "broken", ""), input_ids=IDS)


@pytest.mark.parametrize("make", MAKERS)
def test_embeddings_in_place_of_ids_give_the_same_network(make: Any) -> None:
    model = make()
    loaded = tiny_models.loaded(model)
    by_ids, by_embeds = detach(loaded, input_ids=IDS), detach(loaded, inputs_embeds=embeddings_of(model, IDS))
    assert torch.equal(by_ids.jacobian(0).dense(), by_embeds.jacobian(0).dense())
    assert torch.equal(by_ids.streams.output, by_embeds.streams.output)
    single = detach(loaded, inputs_embeds=embeddings_of(model, IDS).float())
    assert single.jacobian(0).x.dtype is torch.float64
    assert single.reconstruction.norm_error <= 1e-13


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("freeze", ["gate", "up", "half"])
def test_exact_zeros_in_the_input_are_no_exception(make: Any, freeze: Any) -> None:
    """A zero row has rms √eps, gates act(0) = 0 and the ratio act(z)/z at its limit; a bias-free row stays zero."""
    embeds = torch.randn(6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embeds[0] = 0
    embeds[3] = 0
    embeds[4, ::2] = 0
    for bias in (False, True):
        network = detach(tiny_models.loaded(make(bias=bias)), inputs_embeds=embeds, freeze=freeze)
        for position in range(6):
            for target in ("output", "residual"):
                operator = network.jacobian("joint", target=target, position=position)
                assert torch.isfinite(operator.dense()).all()
                scale = max(operator.y.norm(), 1e-300)
                estimate = operator.matmat(operator.x[:, None])[:, 0] + operator.offset
                assert (estimate - operator.y).norm() <= 1e-13 * scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": []}, "no tokens"),
        ({"input_ids": [[]]}, "no tokens"),
        ({"input_ids": [[1, 2], []]}, "no tokens"),
        ({"input_ids": torch.zeros(0, 3, dtype=torch.long)}, "no tokens"),
        ({"input_ids": [1.5]}, "must be integers"),
        ({"input_ids": [True, False]}, "must be integers"),
        ({"input_ids": torch.ones(3, dtype=torch.bool)}, "must be integers"),
        ({"input_ids": "text"}, "must be integers"),
        ({"input_ids": [40]}, "not in the vocabulary"),
        ({"input_ids": [-1]}, "not in the vocabulary"),
        ({"input_ids": [1] * 65}, "context is 64"),
        ({"inputs_embeds": torch.zeros(3, 5)}, r"must be \(positions, 24\)"),
        ({"inputs_embeds": torch.full((3, 24), float("nan"))}, "NaN"),
        ({"input_ids": [1], "freeze": "both"}, "freeze must be"),
        ({"prompt": "text"}, "no tokenizer"),
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
        ({}, "exactly one"),
        ({"prompt": "a", "input_ids": [1]}, "exactly one"),
    ],
)
def test_unusable_input_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        detach(tiny_models.loaded(tiny_models.llama()), **options)
    assert "\n" not in str(caught.value)

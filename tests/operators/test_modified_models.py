"""No wrong J: models changed by hand are served exactly or refused, whatever the caller's torch is set to.

Each change is made to a tiny Llama; what is served is held against reverse mode through the changed model itself.
"""

import copy
import functools
import itertools
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import detjac_lanczos as dl
from detjac_lanczos.errors import InputError, ModelError, UnsupportedModelError
from detjac_lanczos.frozen import families, precision
from detjac_lanczos.frozen.structural_copy import structural_copy
from detjac_lanczos.operators import DetachedNetwork, detach
from tests import tiny_models
from tests.offloading import in_host_memory
from tests.oracles import OracleA, embeddings_of, errors
from tests.tiny_models.dense import DENSE

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[Any], None]


def tokens() -> list[int]:
    return tiny_models.prompt_ids(tiny_models.LENGTH)[0]


def jacobians(network: DetachedNetwork) -> Tensor:
    """(d, n, d): J of every token."""
    batch = network.jacobians()
    eye = torch.eye(batch.shapes[0][0], dtype=network.dtype)
    return torch.stack([product.T for product in batch.rmatmat_shared(eye)], dim=1)


def set_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = types.MethodType(forward, module)


def rms(self: Any, x: Tensor) -> Tensor:
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def inner_norm(model: Any) -> Any:
    return model.model.layers[1].input_layernorm


def mlp(model: Any) -> Any:
    return model.model.layers[1].mlp


def with_norm_of_another_formula(model: Any) -> None:
    set_forward(inner_norm(model), lambda self, x: self.weight * x / x.abs().mean(-1, keepdim=True))


def with_norm_times_a_little_more_than_one(model: Any) -> None:
    set_forward(inner_norm(model), lambda self, x: rms(self, x) * 1.0001)


def with_norm_plus_a_little(model: Any) -> None:
    set_forward(inner_norm(model), lambda self, x: rms(self, x) + 1e-7)


def with_dropout_that_never_rests(model: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)), 0.1)

    set_forward(mlp(model), forward)


def with_clamped_mlp(model: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj((self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(-0.05, 0.05))

    set_forward(mlp(model), forward)


def with_a_function_in_place_of_its_activation(model: Any) -> None:
    del mlp(model)._modules["act_fn"]
    mlp(model).__dict__["act_fn"] = nn.functional.silu


def with_a_head_that_adds(model: Any) -> None:
    set_forward(model.lm_head, lambda self, x: nn.functional.linear(x, self.weight) * 1.01)


def with_a_projection_that_squares(model: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight) + 0.1 * x.pow(2).sum(-1, keepdim=True)

    set_forward(model.model.layers[1].self_attn.o_proj, forward)


def with_a_parametrized_weight(model: Any) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(mlp(model).up_proj, "weight", Twice())


def with_attention_both_ways(model: Any) -> None:
    model.model.layers[0].self_attn.is_causal = False


def with_a_compiled_forward_that_is_not_its_own(model: Any) -> None:
    mlp(model).forward = torch.compile(lambda x: mlp(model).down_proj(mlp(model).up_proj(x)), backend="eager")


def with_fewer_blocks_than_it_holds(model: Any) -> None:
    model.config.num_hidden_layers = 2


def with_blocks_that_run_twice(model: Any) -> None:
    def forward(self: Any, **inputs: Any) -> Any:
        once = type(self).forward(self, **inputs)
        return type(self).forward(self, inputs_embeds=once.last_hidden_state, use_cache=False)

    set_forward(model.model, forward)


OTHER_ATTENTION, OTHER_MLP = (
    f"self-check: {part}.1 gives something else than the model's" for part in ("attention", "mlp")
)
OTHER_SUM = r"blocks\.1 is not built as Llama 2 / 3 is: it adds something else"

REFUSED: dict[Change, str] = {
    with_norm_of_another_formula: OTHER_ATTENTION,
    with_norm_times_a_little_more_than_one: OTHER_ATTENTION,
    with_norm_plus_a_little: OTHER_ATTENTION,
    with_dropout_that_never_rests: OTHER_SUM,
    with_clamped_mlp: OTHER_MLP,
    with_a_function_in_place_of_its_activation: "`act_fn` is not an nn.Module",
    with_a_head_that_adds: "self-check: its logits are not the model's",
    with_a_projection_that_squares: OTHER_ATTENTION,
    with_a_parametrized_weight: r"blocks\.1\.mlp\.up_proj is parametrised",
    with_attention_both_ways: r"layers\.0\.self_attn attends to later positions",
    with_a_compiled_forward_that_is_not_its_own: r"set as the forward of model\.layers\.1\.mlp",
    with_fewer_blocks_than_it_holds: "block 2 of LlamaForCausalLM does not run once in a pass",
    with_blocks_that_run_twice: "block 0 of LlamaForCausalLM does not run once in a pass",
}


@pytest.mark.parametrize(("change", "words"), REFUSED.items())
def test_what_is_not_understood_is_refused(change: Change, words: str) -> None:
    model = DENSE["Llama"](torch.float64)
    change(model)
    with pytest.raises(UnsupportedModelError, match=words) as refusal:
        detach((model, None), input_ids=tokens())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("position", [0, 3])
def test_a_part_of_another_formula_shows_though_no_window_lets_it_through(position: int) -> None:
    """24 positions before the last one, and 3 blocks with windows of 4."""
    model = DENSE["Mistral"](torch.float64)

    def forward(self: Any, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        other = torch.arange(x.shape[1])[:, None] == position
        return self.down_proj(self.act_fn(self.gate_proj(x)) * torch.where(other, up.tanh(), up))

    set_forward(model.model.layers[0].mlp, forward)
    with pytest.raises(UnsupportedModelError, match=r"mlp\.0 gives something else than the model's"):
        detach((model, None), input_ids=tiny_models.prompt_ids(25)[0])


@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-6])
def test_a_small_branch_of_another_formula_shows_beside_a_large_stream(size: float) -> None:
    model = tiny_models.llama(torch.float32)
    mlp(model).down_proj.weight.data *= size
    detach((model, None), input_ids=tokens())
    changed = copy.deepcopy(model)
    set_forward(mlp(changed), lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x).tanh()))
    with pytest.raises(UnsupportedModelError, match="fails its self-check"):
        detach((changed, None), input_ids=tokens())


def test_rounding_of_a_stream_with_a_large_mean_is_no_other_formula() -> None:
    """A LayerNorm takes the mean off, and with it all but the last bits of a bfloat16 stream."""
    model = DENSE["OPT plain"](torch.bfloat16)
    model.get_input_embeddings().weight.data += 1000.0
    detach((model, None), input_ids=tokens())


def test_a_change_of_a_ten_thousandth_shows_in_float32() -> None:
    model = DENSE["Llama"](torch.float32)
    with_norm_times_a_little_more_than_one(model)
    with pytest.raises(UnsupportedModelError, match="self-check"):
        detach((model, None), input_ids=tokens())


def bias_on_a_gate(model: Any) -> None:
    old = mlp(model).gate_proj
    new = nn.Linear(old.in_features, old.out_features, dtype=torch.float64)
    new.weight = old.weight
    mlp(model).gate_proj = new


def another_epsilon(model: Any) -> None:
    model.model.norm.variance_epsilon = 1


def embeddings_times_three(model: Any) -> None:
    set_forward(model.model.embed_tokens, lambda self, ids: 3 * nn.functional.embedding(ids, self.weight))


def one_activation_in_all_blocks(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = mlp(model).act_fn


class OwnLinear(nn.Linear):
    pass


class LinearOfOwnWeight(nn.Linear):
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return 2 * self._parameters["weight"]  # type: ignore[operator]

    @weight.setter
    def weight(self, value: Any) -> None:
        self._parameters["weight"] = value


def linear_of_a_class_that_changes_nothing(model: Any) -> None:
    for module in model.model.layers[1].modules():
        if isinstance(module, nn.Linear):
            module.__class__ = OwnLinear


def activation_in_place(model: Any) -> None:
    mlp(model).act_fn = nn.SiLU(inplace=True)


def training(model: Any) -> None:
    model.gradient_checkpointing_enable()
    model.train()


def eager_attention_that_returns_everything(model: Any) -> None:
    model.config._attn_implementation = "eager"
    model.config.output_attentions = model.config.output_hidden_states = True


def tuples(model: Any) -> None:
    model.config.return_dict = False


def other_frequencies(model: Any) -> None:
    model.model.rotary_emb.inv_freq *= 1.5


SERVED: list[Change] = [
    bias_on_a_gate,
    another_epsilon,
    embeddings_times_three,
    one_activation_in_all_blocks,
    training,
    eager_attention_that_returns_everything,
    tuples,
    other_frequencies,
]


@pytest.mark.parametrize("freeze", ["gate", "up"])
@pytest.mark.parametrize("change", SERVED)
@pytest.mark.filterwarnings("ignore")
def test_what_is_served_is_the_changed_model(change: Change, freeze: Any) -> None:
    model = DENSE["Llama"](torch.float64)
    change(model)
    was_training, returned = model.training, model.config.return_dict
    network = detach((model, None), input_ids=tokens(), freeze=freeze)
    assert (model.training, model.config.return_dict) == (was_training, returned)
    model.config.return_dict = True
    expected = OracleA(model.eval(), embeddings_of(model, tokens()), freeze).jacobian(
        "embeddings", "output", len(tokens()) - 1
    )
    assert max(errors(jacobians(network), expected)) <= 1e-11
    assert network.reconstruction.norm_error <= 1e-13


def test_a_linear_module_whose_weight_is_computed_is_refused() -> None:
    model = DENSE["Llama"](torch.float64)
    mlp(model).up_proj.__class__ = LinearOfOwnWeight
    with pytest.raises(UnsupportedModelError, match="is a LinearOfOwnWeight"):
        detach((model, None), input_ids=tokens())


@pytest.mark.parametrize("declared", [True, False])
def test_what_changes_no_arithmetic_changes_no_jacobian(declared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = (DENSE["Llama"](torch.float64) for _ in range(2))
    linear_of_a_class_that_changes_nothing(model)
    activation_in_place(model)
    if not declared:
        monkeypatch.setattr(families, "FAMILIES", ())
    found, expected = (
        detach((it, None), input_ids=tokens(), freeze="half").jacobian(2, target=dl.mlp(1)) for it in (model, plain)
    )
    assert torch.equal(found.y, expected.y)
    torch.testing.assert_close(found.dense(), expected.dense(), rtol=1e-12, atol=1e-12)


def test_factors_that_are_made_again_are_those_of_an_activation_in_place() -> None:
    model = DENSE["Llama"](torch.float64)
    expected = jacobians(detach((model, None), input_ids=tokens(), freeze="half"))
    activation_in_place(model)
    network = detach((model, None), input_ids=tokens(), freeze="half", memory="25KB")
    assert "rebuild" in str(network.plan)
    torch.testing.assert_close(jacobians(network), expected, rtol=1e-12, atol=1e-12)
    assert mlp(model).act_fn.inplace


def test_a_model_that_reads_what_an_activation_wrote_in_place_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        self.act_fn(gate)
        return self.down_proj(gate * self.up_proj(x))

    model = DENSE["Llama"](torch.float64)
    activation_in_place(model)
    set_forward(mlp(model), forward)
    with pytest.raises(UnsupportedModelError, match="self-check"):
        detach((model, None), input_ids=tokens())


def test_compiled_modules_of_a_model_that_no_family_declares_are_run_as_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = DENSE["Llama"](torch.float64)
    expected = detach((model, None), input_ids=tokens()).jacobian(2).dense()
    monkeypatch.setattr(families, "FAMILIES", ())
    for path in ("model.layers.1", "model"):
        model.set_submodule(path, torch.compile(model.get_submodule(path), backend="eager"))
    found = detach((model, None), input_ids=tokens()).jacobian(2).dense()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [0, 2])
def test_blocks_may_add_to_the_stream_in_place(block: int) -> None:
    def forward(self: Any, hidden_states: Tensor, **inputs: Any) -> Tensor:
        hidden_states += self.self_attn(hidden_states=self.input_layernorm(hidden_states), **inputs)[0]
        hidden_states += self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states

    model = DENSE["Llama"](torch.float64)
    expected = detach((model, None), input_ids=tokens())
    set_forward(model.model.layers[block], forward)
    network = detach((model, None), input_ids=tokens())
    for source in ("embeddings", dl.layer(block)):
        J, plain = (n.jacobian("joint", source=source) for n in (network, expected))
        assert torch.equal(J.x, plain.x) and torch.equal(J.dense(), plain.dense())


SHARED = {
    "one MLP in two blocks": ("layers.1.mlp", "layers.2.mlp"),
    "one MLP with its norm": (
        "layers.0.mlp layers.0.post_attention_layernorm",
        "layers.1.mlp layers.1.input_layernorm",
    ),
    "one attention in two blocks": ("layers.1.self_attn", "layers.2.self_attn"),
    "one projection in two blocks": ("layers.1.mlp.up_proj", "layers.2.mlp.up_proj"),
    "one norm twice in a block": ("layers.1.input_layernorm", "layers.1.post_attention_layernorm"),
    "one norm in a block and behind all": ("layers.2.input_layernorm", "norm"),
    "one block twice": ("layers.0", "layers.2"),
}
"""Modules of a Llama, and the places where they stand a second time."""


def put(model: Any, kind: str, *, copied: bool = False) -> Any:
    """Return a model of shared modules, or of copies in the second places: the same function."""
    config = {id(model.config): model.config}
    for first, second in zip(*(places.split() for places in SHARED[kind]), strict=True):
        module = model.model.get_submodule(first)
        model.model.set_submodule(second, copy.deepcopy(module, config) if copied else module)
    return model


@pytest.mark.parametrize("freeze", ["gate", "up"])
@pytest.mark.parametrize("kind", SHARED)
def test_a_module_at_two_places_is_told_apart(kind: str, freeze: Any) -> None:
    shared, plain = (put(DENSE["Llama"](torch.float64), kind, copied=copied) for copied in (False, True))
    network = detach((shared, None), input_ids=tokens(), freeze=freeze)
    last = len(tokens()) - 1
    expected = OracleA(plain, embeddings_of(plain, tokens()), freeze).jacobian("embeddings", "output", last)
    assert max(errors(jacobians(network), expected)) <= 1e-11
    twin = detach((plain, None), input_ids=tokens(), freeze=freeze)
    for target in (dl.attention(2), dl.mlp(1)):
        assert torch.equal(network.jacobian(0, target=target).y, twin.jacobian(0, target=target).y)
    ordinary = (it.jacobian(0, target=dl.mlp(2), frozen=False).dense() for it in (network, twin))
    torch.testing.assert_close(*ordinary, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SHARED)
def test_a_module_at_two_places_of_an_undeclared_model_is_told_apart(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "FAMILIES", ())
    shared, plain = (put(DENSE["Llama"](torch.float64), kind, copied=copied) for copied in (False, True))
    network, twin = (detach((model, None), input_ids=tokens()) for model in (shared, plain))
    assert network.route == "autograd"
    torch.testing.assert_close(jacobians(network), jacobians(twin), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SHARED)
def test_a_module_at_two_places_may_be_offloaded_or_made_again_in_every_sweep(kind: str) -> None:
    shared, plain = (put(DENSE["Llama"](torch.float64), kind, copied=copied) for copied in (False, True))
    expected = jacobians(detach((plain, None), input_ids=tokens()))
    again = detach((shared, None), input_ids=tokens(), memory="25KB")
    assert "rebuild" in str(again.plan)
    for network in (again, detach((in_host_memory(shared), None), input_ids=tokens())):
        torch.testing.assert_close(jacobians(network), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SHARED)
def test_the_copy_of_a_shared_module_has_its_weights_and_none_more(kind: str) -> None:
    model = put(DENSE["Llama"](torch.float64), kind)
    twin = structural_copy(model)
    ours, theirs = (dict(it.named_parameters(remove_duplicate=False)) for it in (twin, model))
    assert all(ours[name] is parameter for name, parameter in theirs.items())
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("kind", ["Llama", "GPT-2"])
def test_an_embedding_that_rescales_its_rows_in_place_is_refused_unwritten(kind: str) -> None:
    """Of any table: one of positions is written to in the same way."""
    model = DENSE[kind](torch.float64)
    table = [module for module in model.modules() if isinstance(module, nn.Embedding)][-1]
    table.max_norm = 0.1
    before = table.weight.detach().clone()
    for options in ({}, {"dtype": torch.float32}):
        with pytest.raises(UnsupportedModelError, match=r"\(Embedding\) has max_norm=0\.1"):
            detach((model, None), input_ids=tokens(), **options)
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize("declared", [True, False])
def test_a_copied_block_may_have_a_configuration_of_its_own(declared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in depth up-scaling by hand; no configuration of the caller's is written to."""
    if not declared:
        monkeypatch.setattr(families, "FAMILIES", ())
    model, plain = DENSE["Llama"](torch.float64), DENSE["Llama"](torch.float64, num_hidden_layers=4)
    model.model.layers.insert(1, copy.deepcopy(model.model.layers[0]))
    model.config.num_hidden_layers = 4
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
    plain.load_state_dict(model.state_dict())
    configs = [model.config, model.model.layers[1].self_attn.config]
    before = copy.deepcopy([vars(config) for config in configs])
    network, expected = (detach((it, None), input_ids=tokens()) for it in (model, plain))
    torch.testing.assert_close(jacobians(network), jacobians(expected), rtol=1e-12, atol=1e-12)
    ordinary = (it.jacobian(0, frozen=False).dense() for it in (network, expected))
    torch.testing.assert_close(*ordinary, rtol=1e-12, atol=1e-12)
    assert [vars(config) for config in configs] == before
    assert configs[0] is not configs[1]


@contextmanager
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "GPT-2", "Qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("setting", [default_float64, deterministic, torch.inference_mode, torch.enable_grad])
def test_settings_of_the_caller_change_nothing(setting: Any, dtype: torch.dtype, name: str) -> None:
    model = (DENSE[name](dtype), None)
    expected = jacobians(detach(model, input_ids=tokens()))
    with setting():
        found = jacobians(detach(model, input_ids=tokens()))
    assert found.dtype is dtype
    assert torch.equal(found, expected)


def test_products_of_less_than_float32_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many processors multiply in float32 whatever torch is set to."""
    model = (DENSE["Llama"](torch.float32), None)
    network = detach(model, input_ids=tokens())
    J, ordinary = network.jacobian(0), network.jacobian(0, frozen=False)
    monkeypatch.setattr(precision, "_products_are_exact", lambda device, setting: False)
    with pytest.raises(InputError, match="set_float32_matmul_precision"):
        detach(model, input_ids=tokens())
    for product in (J.matmat, J.rmatmat, ordinary.matmat, ordinary.rmatmat):
        with pytest.raises(InputError, match="set_float32_matmul_precision"):
            product(torch.ones(J.shape[0], 1))
    double = DENSE["Llama"](torch.float64)
    assert detach((double, None), input_ids=tokens()).reconstruction.norm_error <= 1e-13


@pytest.mark.parametrize("part", ["model.norm", "model.layers.1.mlp", "lm_head"])
def test_mixed_dtypes_that_do_not_run_are_one_line(part: str) -> None:
    model = DENSE["Llama"](torch.float32)
    model.get_submodule(part).double()
    with pytest.raises(ModelError, match="float32 and float64; give them one dtype"):
        detach((model, None), input_ids=tokens())


def test_mixed_dtypes_that_run_are_served() -> None:
    model = DENSE["GPT-2"](torch.bfloat16)
    model.transformer.ln_f.float()
    network = detach((model, None), input_ids=tokens())
    assert network.dtype is torch.bfloat16
    assert network.reconstruction.norm_error <= 0.02


def test_a_forward_pass_that_fails_is_one_line() -> None:
    model = DENSE["Llama"](torch.float32)
    model.model.layers[1].self_attn.num_key_value_groups = 1
    with pytest.raises(ModelError, match="forward pass of LlamaForCausalLM fails"):
        detach((model, None), input_ids=tokens())


@pytest.mark.parametrize(("wrap", "inside"), [(torch.compile, "_orig_mod"), (nn.DataParallel, "module")])
def test_a_wrapped_model_is_refused_with_what_to_give(wrap: Any, inside: str) -> None:
    model = DENSE["Llama"](torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = wrap(model)
    with pytest.raises(InputError, match=inside):
        detach((wrapped, None), input_ids=tokens())
    assert detach((getattr(wrapped, inside), None), input_ids=tokens()).reconstruction.norm_error <= 1e-6


def test_a_compiled_module_is_differentiated_as_itself() -> None:
    plain, compiled = tiny_models.llama(), tiny_models.llama()
    compiled.model.layers[1] = torch.compile(compiled.model.layers[1], backend="eager")
    found, expected = (
        detach((model, None), input_ids=[3, 1, 4, 1, 5]).jacobian("joint", frozen=False) for model in (compiled, plain)
    )
    torch.testing.assert_close(found.dense(), expected.dense())
    X = torch.eye(expected.shape[1], dtype=torch.float64)[:, :7]
    torch.testing.assert_close(found.matmat(X), expected.matmat(X))
    assert hasattr(compiled.model.layers[1], "_orig_mod")


@pytest.mark.parametrize("path", ["", "model.layers.1", "model.layers.0.mlp", "model.layers.2.self_attn"])
def test_a_compiled_forward_is_run_as_what_it_was_made_of(path: str) -> None:
    model = tiny_models.llama()
    expected = detach((model, None), input_ids=tokens()).jacobian("joint").dense()
    module = model.get_submodule(path)
    compiled = module.forward = torch.compile(module.forward, backend="eager")
    assert torch.equal(detach((model, None), input_ids=tokens()).jacobian("joint").dense(), expected)
    assert module.forward is compiled


def test_a_compiled_forward_of_another_module_is_refused() -> None:
    """As in a deep copy, whose compiled forwards still run the modules that it was copied from."""
    model = tiny_models.llama()
    mlp(model).forward = torch.compile(mlp(model).forward, backend="eager")
    assert detach((model, None), input_ids=tokens()).reconstruction.norm_error <= 1e-12
    for other in (copy.deepcopy(model), tiny_models.llama()):
        mlp(other).forward = mlp(model).forward
        with pytest.raises(UnsupportedModelError, match="set as the forward"):
            detach((other, None), input_ids=tokens())


def test_a_function_set_as_a_forward_is_refused() -> None:
    model = tiny_models.llama()
    for module, name in ((model, "the model"), (model.model.layers[1].mlp, r"model\.layers\.1\.mlp")):
        own = module.forward

        @functools.wraps(own)
        def doubled(*args: Any, _own: Any = own, **kwargs: Any) -> Any:
            return _own(*args, **kwargs)

        module.forward = doubled
        with pytest.raises(UnsupportedModelError, match=rf"set as the forward of {name} \("):
            detach((model, None), input_ids=tokens())
        del module.forward


@pytest.mark.parametrize("drop", [dl.mlp(0), dl.attention(1)])
def test_an_altered_network_rebuilds_its_own_output_from_its_own_streams(drop: Any) -> None:
    network = detach((tiny_models.llama(bias=True), None), input_ids=[[3, 1, 4, 1, 5], [2, 7, 1]]).replace(drop=drop)
    for prompt, block in itertools.product(range(2), range(network.blocks)):
        J = network.jacobian((prompt, "joint"), source=dl.layer(block))
        torch.testing.assert_close(J.dense() @ J.x + J.offset, J.y, rtol=1e-12, atol=1e-12)

"""The pass whose factors are frozen is held against the model's own pass, made as it is."""

import sys
from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from detjac_lanczos import detach
from detjac_lanczos.errors import ModelError, UnsupportedModelError
from detjac_lanczos.operators.bars import own_parts_bar
from detjac_lanczos.operators.own_parts import distances_of_parts, runs_foreign_functions
from tests import tiny_models
from tests.tiny_models.dense import DENSE, llama
from tests.tiny_models.moe import MOE, deepseek_v3
from tests.tiny_models.undeclared import stablelm

IDS = [5, 3, 7, 0, 9, 2, 4, 1, 8, 6, 11]


def own_output(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    hidden: Tensor = out.hidden_states[-1][0]
    return hidden


@pytest.mark.parametrize("name", [*DENSE, *MOE])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-2)], ids=str)
def test_the_models_own_output_is_kept_bit_for_bit_beside_the_observed_one(
    dtype: torch.dtype, bar: float, name: str
) -> None:
    model = (DENSE | MOE)[name](dtype)
    streams = detach(tiny_models.loaded(model), input_ids=[IDS, IDS[:4]]).streams
    own = torch.cat([own_output(model, IDS), own_output(model, IDS[:4])])
    assert torch.equal(streams.model_output, own)
    assert (streams.output - own).float().norm() <= bar * own.float().norm()


@pytest.fixture
def overridden() -> Iterator[None]:
    """What a test sets in the registries of transformers for one process is taken back."""
    yield
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        registry._local_mapping.pop("sdpa", None)


@pytest.mark.usefixtures("overridden")
def test_an_attention_function_of_the_callers_is_not_taken_for_eager() -> None:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def longer(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return own(*args, **kwargs)[0] * 1.01, None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = longer
    with pytest.raises(UnsupportedModelError, match="its pass is not the model's own"):
        detach(tiny_models.loaded(DENSE["Llama"](torch.float32)), input_ids=IDS)


@pytest.mark.usefixtures("overridden")
def test_an_own_pass_that_is_not_finite_is_said_to_be_that() -> None:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *args, **kwargs: (own(*args, **kwargs)[0] * float("nan"), None)
    with pytest.raises(ModelError, match="output is not finite on this prompt"):
        detach(tiny_models.loaded(DENSE["Llama"](torch.float32)), input_ids=IDS)


@pytest.mark.usefixtures("overridden")
def test_a_mask_of_the_callers_is_not_taken_for_eager() -> None:
    own = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]

    def without_the_first(**kwargs: Any) -> Tensor:
        mask: Tensor = own(**kwargs | {"allow_is_causal_skip": False}).clone()
        mask[..., 1:, 0] = False
        return mask

    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = without_the_first
    with pytest.raises(UnsupportedModelError, match="its pass is not the model's own"):
        detach(tiny_models.loaded(DENSE["Llama"](torch.float32)), input_ids=IDS)


def test_a_module_that_depends_on_the_kind_of_attention_is_not_taken_for_eager() -> None:
    model = DENSE["Llama"](torch.float32)
    mlp = model.model.layers[1].mlp

    class Doubled(type(mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return 2 * out if self.config._attn_implementation == "sdpa" else out

    mlp.__class__ = Doubled
    with pytest.raises(UnsupportedModelError, match="its pass is not the model's own"):
        detach(tiny_models.loaded(model), input_ids=IDS)


def louder(factor: float) -> Any:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return own(*args, **kwargs)[0] * factor, None

    return attention


@pytest.mark.parametrize(
    ("name", "dtype", "factor"),
    [("Llama", torch.bfloat16, 1.1), ("Qwen3-MoE", torch.float16, 1.4)],
    ids=str,
)
def test_in_half_precision_rounding_hides_no_wrong_attention(
    name: str, dtype: torch.dtype, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", louder(factor))
    with pytest.raises(UnsupportedModelError, match=r"its blocks\.0\.self_attn is not the model's own"):
        detach(tiny_models.loaded((DENSE | MOE)[name](dtype)), input_ids=IDS)


@pytest.mark.parametrize(("index", "name"), [(1, r"blocks\.2\.input_layernorm"), (2, "output")])
def test_what_differs_between_modules_in_half_precision_is_seen_behind_it(index: int, name: str) -> None:
    model = DENSE["Llama"](torch.bfloat16)
    block = model.model.layers[index]

    class Louder(type(block)):  # type: ignore[misc]
        def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
            out: Tensor = super().forward(x, **kwargs)
            return 1.3 * out - 0.3 * x if self.self_attn.config._attn_implementation == "sdpa" else out

    block.__class__ = Louder
    with pytest.raises(UnsupportedModelError, match=f"its {name} is not the model's own"):
        detach(tiny_models.loaded(model), input_ids=IDS)


def cooler(own: Any) -> Any:
    """Return sdpa at a temperature of 1.25, under the name that transformers has for its own."""

    @wraps(own)
    def attention(*args: Any, scaling: float, **kwargs: Any) -> tuple[Tensor, None]:
        out: tuple[Tensor, None] = own(*args, scaling=0.8 * scaling, **kwargs)
        return out

    return attention


@pytest.mark.parametrize("make", [llama, stablelm])
def test_in_half_precision_attention_of_the_callers_is_held_against_each_module(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes lie no further apart than rounding alone may bring them."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "cooler", cooler(ALL_ATTENTION_FUNCTIONS["sdpa"]))
    model = make(torch.bfloat16)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "o_proj"):
                module.o_proj.weight *= 0.1
    own = own_output(model, IDS)
    model.set_attn_implementation("cooler")
    assert (own_output(model, IDS) - own).norm() < own_parts_bar(torch.bfloat16) / 2 * own.norm()
    with pytest.raises(UnsupportedModelError, match=r"its blocks\.0\.self_attn is not the model's own"):
        detach(tiny_models.loaded(model), input_ids=IDS)


@pytest.mark.usefixtures("overridden")
@pytest.mark.parametrize("kind", ["attention", "mask", "experts", "eager"])
def test_functions_that_are_not_of_transformers_are_known(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MOE["Qwen3-MoE"](torch.bfloat16)
    assert not runs_foreign_functions(model)
    match kind:
        case "attention":
            ALL_ATTENTION_FUNCTIONS["sdpa"] = cooler(ALL_ATTENTION_FUNCTIONS["sdpa"])
        case "mask":
            ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = cooler(ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        case "experts":
            monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "mine", cooler)
            model.config._experts_implementation = "mine"
        case "eager":
            code = sys.modules[type(model).__module__]
            monkeypatch.setattr(code, "eager_attention_forward", cooler(code.eager_attention_forward))  # type: ignore[attr-defined]
    assert runs_foreign_functions(model)


def sharp(dtype: torch.dtype) -> Any:
    """Return a Llama whose attention makes much of rounding, block after block."""
    model = llama(dtype, num_hidden_layers=6, seed=2)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight *= 16
    return model


def routed(dtype: torch.dtype) -> Any:
    """Return a DeepSeek-V3 in which near ties send tokens of the prompt to other experts."""
    return deepseek_v3(dtype, seed=0)


@pytest.mark.parametrize(("make", "dtype"), [(sharp, torch.float16), (routed, torch.bfloat16)])
def test_rounding_that_grows_and_near_ties_are_sound(make: Any, dtype: torch.dtype) -> None:
    """The passes lie far apart; module by module, on one input, they do not."""
    network = detach(tiny_models.loaded(make(dtype)), input_ids=IDS)
    own = network.streams.model_output.double()
    assert (network.streams.output - own).norm() > own_parts_bar(dtype) * own.norm()
    distances = dict(distances_of_parts(network.model, network.family, network.prompts[0]))
    assert distances.pop("output") == 0
    assert 0 < max(distances.values()) <= own_parts_bar(dtype) / 4


def test_a_module_that_is_called_twice_in_a_block_is_compared_each_time() -> None:
    network = detach(tiny_models.loaded(DENSE["Phi-2"](torch.bfloat16)), input_ids=IDS)
    names = [name for name, _ in distances_of_parts(network.model, network.family, network.prompts[0])]
    assert names.count("blocks.0.resid_dropout") == 2


def test_one_head_of_small_values_and_large_weights_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DENSE["Llama"](torch.float32)
    attention = model.model.layers[0].self_attn
    width = attention.head_dim
    with torch.no_grad():
        attention.v_proj.weight[:width] *= 1e-5
        attention.o_proj.weight[:, :width] *= 1e5
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def without_the_first_head(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        out: Tensor = own(module, *args, **kwargs)[0].clone()
        out[..., 0, :] = 0
        return out, None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", without_the_first_head)
    with pytest.raises(UnsupportedModelError, match="its pass is not the model's own"):
        detach(tiny_models.loaded(model), input_ids=IDS)

"""The pass whose factors are frozen is held against the model's own pass, made as it is."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from detjac_lanczos import detach
from detjac_lanczos.errors import UnsupportedModelError
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE

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

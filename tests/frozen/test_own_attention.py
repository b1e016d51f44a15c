"""In float32 the pass that is frozen is the model's own but for attention, of which every call is compared."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from detjac_lanczos import detach
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen import capture
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE

IDS = [5, 3, 7, 0, 9, 2, 4, 1, 8, 6, 11]
WITH_SDPA = [name for name in DENSE if not name.startswith("Gemma 2")]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of the prompt of every forward pass."""
    run, lengths = capture._run, []

    def counted(model: Any, prompt: Any) -> Tensor:
        lengths.append(prompt.length)
        return run(model, prompt)

    monkeypatch.setattr(capture, "_run", counted)
    return lengths


def own_output(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    hidden: Tensor = out.hidden_states[-1][0]
    return hidden


@pytest.mark.parametrize("name", WITH_SDPA)
def test_in_float32_one_pass_a_prompt_is_the_models_own_to_rounding(name: str, passes: list[int]) -> None:
    model = DENSE[name](torch.float32)
    streams = detach(tiny_models.loaded(model), input_ids=[IDS, IDS[:4]]).streams
    own = torch.cat([own_output(model, IDS), own_output(model, IDS[:4])])
    assert passes == [11, 4]
    assert (streams.model_output - own).norm() <= 1e-6 * own.norm()
    assert torch.equal(streams.model_output, streams.output)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("Llama", torch.float32),
        ("Mixtral", torch.float32),
        ("Llama", torch.bfloat16),
        ("Mixtral", torch.bfloat16),
        ("Gemma 3", torch.float16),
        ("Gemma 3", torch.float64),
    ],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_elsewhere_the_models_own_pass_is_made_as_well(
    attention: str, dtype: torch.dtype, name: str, passes: list[int]
) -> None:
    model = (DENSE | MOE)[name](dtype)
    model.set_attn_implementation(attention)
    streams = detach(tiny_models.loaded(model), input_ids=IDS).streams
    once = attention == "sdpa" and dtype is torch.float32 and name in DENSE
    assert len(passes) == (1 if once else 2)
    if not once:
        assert torch.equal(streams.model_output, own_output(model, IDS))


def test_an_attention_that_is_not_the_models_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = AttentionInterface._global_mapping["sdpa"]

    def longer(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return own(*args, **kwargs)[0] * 1.001, None

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", longer)
    with pytest.raises(
        UnsupportedModelError, match=r"attention of LlamaAttention is not the model's own \('sdpa'; .*1"
    ):
        detach(tiny_models.loaded(DENSE["Llama"](torch.float32)), input_ids=IDS)


def test_a_mask_that_is_not_the_models_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = AttentionMaskInterface._global_mapping["sdpa"]

    def without_the_first(**kwargs: Any) -> Tensor:
        mask: Tensor = own(**kwargs | {"allow_is_causal_skip": False}).clone()
        mask[..., 1:, 0] = False
        return mask

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "sdpa", without_the_first)
    with pytest.raises(UnsupportedModelError, match="attention of LlamaAttention is not the model's own"):
        detach(tiny_models.loaded(DENSE["Llama"](torch.float32)), input_ids=IDS)


def test_where_a_mask_is_changed_on_the_way_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DENSE["Llama"](torch.float32)
    layer = type(model.model.layers[0].self_attn)
    forward = layer.forward

    def cloned(self: Any, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        mask = None if attention_mask is None else attention_mask.clone()
        return forward(self, *args, attention_mask=mask, **kwargs)

    monkeypatch.setattr(layer, "forward", cloned)
    with pytest.raises(UnsupportedModelError, match=r"compared with the model's own; load it with attn_impl.*='eager'"):
        detach(tiny_models.loaded(model), input_ids=IDS)
    model.set_attn_implementation("eager")
    assert detach(tiny_models.loaded(model), input_ids=IDS).reconstruction.relative_error <= 1e-6

"""The Jacobian of a packed model is that of its decoded weights, and the caller's bytes stay as they are."""

from collections.abc import Callable, Iterator
from functools import cache
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from detjac_kernels import decoded as decoded_rows
from detjac_lanczos.errors import ModelError, UnsupportedModelError
from detjac_lanczos.frozen.observed import make_observable
from detjac_lanczos.frozen.structural_copy import structural_copy
from detjac_lanczos.models import load_model
from detjac_lanczos.models.bitsandbytes import rounding_unsaid
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.linear_modules import weight_of
from detjac_lanczos.operators import DetachedNetwork, attention, detach, layer, mlp, self_check
from detjac_lanczos.operators.own_parts import distances_of_parts
from tests import tiny_models
from tests.oracles import OracleA, embeddings_of, errors
from tests.tiny_models import dense, moe, undeclared
from tests.tiny_models.packed import CONFIGS, dense_twin, quantised

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(7)[0]
BARS = {torch.float32: 2e-6, torch.float64: 1e-11}
MODELS: dict[str, Callable[..., Any]] = {"Llama": dense.llama, "Gemma 3": dense.gemma, "Qwen3-MoE": moe.qwen3_moe}
SIZES: dict[str, dict[str, Any]] = {
    "K multiple of 64": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "K multiple of 16": {"hidden_size": 48, "intermediate_size": 80, "head_dim": 12},
    "K multiple of 8": {},
}
PARTS: dict[str, Callable[[torch.dtype], Any]] = {
    "Phi-3": dense.phi3,
    "GPT-2": dense.gpt2,
    "GPT-NeoX": dense.gpt_neox,
    "OPT": dense.opt,
}


@cache
def case(name: str, size: str, kind: str, dtype: torch.dtype) -> tuple[Any, Any]:
    original = MODELS[name](torch.float32, **SIZES[size])
    model = quantised(original, kind, dtype)
    return model, dense_twin(model, original)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Cases do not outlive the file: all that lives is walked through whenever garbage is collected."""
    yield
    case.cache_clear()


def everything(model: Any) -> dict[str, Tensor]:
    """Every tensor of a model, those of quantisation states included, without their own idea of a state dict."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        found |= {f"{name}.{key}": value for key, value in module.named_parameters(recurse=False)}
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        for owner in (
            state,
            getattr(state, "state2", None),
            getattr(module, "state", None),
            module._parameters.get("weight"),
        ):
            for key, value in getattr(owner, "__dict__", {}).items():
                if isinstance(value, Tensor):
                    found[f"{name}.{type(owner).__name__}.{key}"] = value
    return found


def assert_that_of(model: Any, twin: Any, dtype: torch.dtype, freeze: Any = "gate") -> DetachedNetwork:
    network = detach((model, None), input_ids=IDS, freeze=freeze)
    oracle = OracleA(twin, embeddings_of(twin, IDS), freeze)
    for target, place in {"output": "output", "attention.1": attention(1), "mlp.1": mlp(1)}.items():
        expected = oracle.jacobian("embeddings", target, len(IDS) - 1)
        J = network.jacobian("joint", target=place)
        assert max(errors(J.dense().view(expected.shape), expected)) <= BARS[dtype], target
        assert max(errors(J.T.dense().T.view(expected.shape), expected)) <= BARS[dtype], target
    return network


@pytest.mark.parametrize("kind", ["nf4", "nf4 nested", "fp4", "int8"])
@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        *((name, size, torch.float64) for name in MODELS for size in SIZES),
        *((name, size, torch.float32) for name, size in zip(MODELS, SIZES, strict=True)),
    ],
    ids=str,
)
def test_the_jacobian_is_that_of_the_decoded_weights(name: str, size: str, kind: str, dtype: torch.dtype) -> None:
    model, twin = case(name, size, kind, dtype)
    before = {key: value.clone() for key, value in everything(model).items()}
    network = assert_that_of(model, twin, dtype)
    after = everything(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert network.dtype is dtype
    assert (network.reconstruction.norm_error) <= {torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    with torch.no_grad():
        expected = twin(torch.tensor([IDS])).logits[0, -1]
    # transformers rounds to float32 inside a float64 model.
    assert (network.streams.logits[0] - expected).norm() <= 2e-6 * expected.norm()


def test_packed_bytes_are_no_numbers_under_any_type() -> None:
    """Some of them are NaN, read as the bfloat16 that they are kept as; scales are numbers, and must be finite."""
    original = dense.llama(torch.float32, **SIZES["K multiple of 64"])
    model = quantised(original, "nf4 as bfloat16")
    assert not torch.isfinite(model.model.layers[0].mlp.down_proj.weight.data).all()
    network = assert_that_of(model, dense_twin(model, original), torch.float32)
    assert network.loaded.packing == "NF4 with double quantisation (bitsandbytes)"
    state = model.model.layers[0].mlp.down_proj.weight.quant_state
    for scales in (state.state2.absmax, state.offset):
        sound = scales.clone()
        scales.fill_(float("nan"))
        with pytest.raises(
            ModelError, match=r"layers\.0\.mlp\.down_proj.* finite|down_proj.weight.nested_absmax' holds"
        ):
            detach((model, None), input_ids=IDS)
        scales.copy_(sound)


def test_the_precision_of_a_model_is_not_that_of_its_packed_bytes() -> None:
    module = bitsandbytes.nn.Linear4bit(64, 8, quant_type="nf4", quant_storage=torch.bfloat16).to("cpu")
    assert compute_dtype(nn.Sequential(module, nn.LayerNorm(8))) is torch.float32


def test_a_forward_pass_of_bitsandbytes_is_another_function() -> None:
    """Why it is not what is frozen: LLM.int8 rounds activations. The decoded weights' output is the reference."""
    model, _ = case("Llama", "K multiple of 64", "int8", torch.float32)
    streams = detach((model, None), input_ids=IDS).streams
    assert (streams.output - streams.model_output).norm() >= 1e-3 * streams.output.norm()
    with torch.no_grad():
        again = model.model(torch.tensor([IDS])).last_hidden_state[0]
    assert torch.equal(again, streams.model_output)


def test_modules_of_int8_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They always lie further from their decoded weights than rounding, which is looked into for each model alone."""
    model = structural_copy(case("Llama", "K multiple of 64", "int8", torch.float32)[0])
    compared = []

    def comparing(*args: Any) -> Any:
        compared.append(args)
        return distances_of_parts(*args)

    monkeypatch.setattr(self_check, "distances_of_parts", comparing)
    for ids in (IDS, IDS[:3]):
        detach((model, None), input_ids=ids)
    assert len(compared) == 1


@pytest.mark.parametrize("kind", ["nf4 nested", "fp4", "int8"])
@pytest.mark.parametrize("name", PARTS)
def test_rows_of_fused_projections_decode_alone(name: str, kind: str) -> None:
    original = PARTS[name](torch.float32)
    model = quantised(original, kind, torch.float64)
    network = detach((model, None), input_ids=IDS)
    plain = detach((dense_twin(model, original), None), input_ids=IDS)
    assert network.loaded.packing is not None
    for target in ("output", "logits"):
        J, expected = network.jacobian("joint", target=target), plain.jacobian("joint", target=target)
        assert max(errors(J.dense(), expected.dense())) <= 1e-12
        assert max(errors(J.T.dense(), expected.T.dense())) <= 1e-12
        assert (J.offset - expected.offset).norm() <= 1e-12 * J.y.norm()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_decoder_that_no_family_declares_runs_through_its_decoded_weights(kind: str) -> None:
    original = undeclared.stablelm(torch.float32)
    model = quantised(original, kind, torch.float64)
    network = detach((model, None), input_ids=IDS)
    plain = detach((dense_twin(model, original), None), input_ids=IDS)
    assert network.route == "autograd"
    assert max(errors(network.jacobian("joint").dense(), plain.jacobian("joint").dense())) <= 1e-12


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packing_hides_no_attention_of_the_callers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def cooler(*args: Any, scaling: float, **kwargs: Any) -> Any:
        return own(*args, scaling=0.9 * scaling, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", cooler)
    model, _ = case("Llama", "K multiple of 64", kind, torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"its blocks\.0\.self_attn is not the model's own"):
        detach((model, None), input_ids=IDS)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_ordinary_jacobian_is_that_of_the_decoded_weights(kind: str) -> None:
    model, twin = case("Llama", "K multiple of 16", kind, torch.float64)
    found, expected = (detach((m, None), input_ids=IDS).jacobian("joint", frozen=False) for m in (model, twin))
    assert max(errors(found.dense(), expected.dense())) <= 1e-12
    assert max(errors(found.T.dense(), expected.T.dense())) <= 1e-12


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_add_to_the_decoded_weight(kind: str, dora: bool) -> None:
    original = dense.llama(torch.float32, bias=True)
    model = quantised(original, kind, torch.float64)
    twin = dense_twin(model, original)
    config = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_dora": dora}
    models = []
    for base in (model, twin):
        adapted = peft.get_peft_model(base, peft.LoraConfig(**config))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = (1.0 if parameter.ndim == 1 else 0.0) + 0.3 * noise
        models.append(adapted.eval())
    found, expected = (detach((m, None), input_ids=IDS) for m in models)
    assert max(errors(found.jacobian("joint").dense(), expected.jacobian("joint").dense())) <= 1e-12
    J, E = (n.jacobian("joint", source=layer(1), target=mlp(2)).T.dense() for n in (found, expected))
    assert max(errors(J, E)) <= 1e-12


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_tied_head_that_was_not_skipped_is_refused_with_what_helps(kind: str) -> None:
    original = dense.gemma(torch.float32, **SIZES["K multiple of 64"])
    with TemporaryDirectory() as folder:
        original.save_pretrained(folder)
        config = BitsAndBytesConfig(**CONFIGS[kind], llm_int8_skip_modules=[])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    with pytest.raises(UnsupportedModelError, match=r"lm_head is not quantised: .* llm_int8_skip_modules"):
        detach((model, None), input_ids=IDS)


def test_a_weight_repacked_for_the_cpu_is_refused_and_stays_as_it_is() -> None:
    model = quantised(dense.llama(torch.float32, **SIZES["K multiple of 64"]), "nf4")
    module = model.model.layers[1].mlp.up_proj
    module.weight.quant_state.packing_format_for_cpu = True
    before = {key: value.clone() for key, value in everything(model).items()}
    for attempt in (lambda: load_model(model), lambda: structural_copy(model), lambda: weight_of(module, "up")):
        with pytest.raises(UnsupportedModelError, match="repacked"):
            attempt()
    assert all(torch.equal(value, before[key]) for key, value in everything(model).items())


def test_rounding_is_said_of_the_callers_own_passes_alone(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = case("Llama", "K multiple of 16", "int8", torch.float32)
    detach((model, None), input_ids=IDS)
    assert not caplog.records
    with rounding_unsaid():
        other = Thread(target=model, args=(torch.tensor([IDS]),))
        other.start()
        other.join()
    assert "inputs will be cast from torch.float32 to float16" in caplog.text
    caplog.clear()
    model(torch.tensor([IDS]))
    assert "inputs will be cast" in caplog.text


class Bytes(TorchDispatchMode):
    """Bytes of every storage that operations made, largest and in total; scratch memory is met once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = (*args, *(kwargs or {}).values())
        known = {a.untyped_storage().data_ptr() for a in given if isinstance(a, Tensor)}
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in known:
                self.sizes.append(value.untyped_storage().nbytes())
        return out


WIDE = {"hidden_size": 128, "intermediate_size": 320, "head_dim": 32, "vocab_size": 80, "num_hidden_layers": 2}


@pytest.mark.parametrize("kind", ["nf4", "nf4 nested", "int8"])
def test_a_copy_shares_every_byte_with_the_model(kind: str) -> None:
    model = quantised(dense.llama(torch.float32, **WIDE), kind)
    with Bytes() as counted:
        twin = structural_copy(model)
    rotary = sum(value.nbytes for name, value in model.named_buffers() if "inv_freq" in name)
    assert sum(counted.sizes) <= rotary
    ours, theirs = everything(model), everything(twin)
    assert ours.keys() == theirs.keys()
    assert all(theirs[name].data_ptr() == value.data_ptr() for name, value in ours.items() if "inv_freq" not in name)


@pytest.mark.parametrize("kind", ["nf4", "nf4 nested", "int8"])
def test_capture_and_sweeps_hold_one_decoded_block_and_no_weight(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two tokens all rows and coefficients are smaller than a decoded matrix: one that is kept would stand out.

    The caller's own pass is left out, it is bitsandbytes that decodes there.
    """
    monkeypatch.setattr(decoded_rows, "CHUNK", 2048)
    model = quantised(dense.llama(torch.float32, **WIDE), kind)
    network = detach((model, None), input_ids=[3, 5])
    modules = [m for m in model.modules() if type(m).__module__.startswith("bitsandbytes")]
    smallest = 4 * min(module.in_features * module.out_features for module in modules)
    twin = structural_copy(model)
    with Bytes() as counted:
        make_observable(twin)
        twin(torch.tensor([[3, 5]]), use_cache=False, logits_to_keep=1)
        J = network.jacobian("joint")
        J.matmat(torch.ones(J.shape[1], 1))
        J.rmatmat(torch.ones(J.shape[0], 1))
    assert max(counted.sizes) < smallest / 2

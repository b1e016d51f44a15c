"""Packed weights one by one: any rows, both directions, every format; what is not linear or not decoded is refused."""

import math
from itertools import product
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from detjac_lanczos.errors import ModelError, UnsupportedModelError
from detjac_lanczos.frozen.words.parts import latent, stacked_values, values_by_head, values_of_latent
from detjac_lanczos.models.decoded import Decoded, runs_of
from detjac_lanczos.models.dequantized import distance_of_own_products
from detjac_lanczos.models.fingerprint import fingerprint_of
from detjac_lanczos.models.linear_modules import weight_of
from detjac_lanczos.models.packed_modules import is_packed, require_linear
from detjac_lanczos.models.weights import DenseWeight
from tests import tiny_models
from tests.tiny_models.packed import decoded

KINDS = ["nf4", "nf4 nested", "fp4", "fp4 nested", "int8"]
STORED = ["nf4 bfloat16", "nf4 nested float32", "fp4 float16", "fp4 nested float64"]
"""Formats whose bytes are kept under a floating type, as sharded training asks for."""
CONFIG = SimpleNamespace(num_attention_heads=4)
ATTENTION = SimpleNamespace(config=CONFIG, num_heads=4, num_key_value_groups=2, kv_lora_rank=7, v_head_dim=3)
PARTS = {
    "whole": None,
    "first half": lambda rows: rows.chunk(2)[0],
    "second half": lambda rows: rows.chunk(2)[1],
    "alternating": lambda rows: rows[1::2],
    "stacked values": lambda rows: stacked_values(rows, ATTENTION),
    "values by head": lambda rows: values_by_head(rows, ATTENTION),
    "latent": lambda rows: latent(rows, ATTENTION),
    "values of a latent": lambda rows: values_of_latent(rows, ATTENTION),
}


def packed_module(kind: str, f: int, d: int, *, bias: bool = False, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    plain = nn.Linear(d, f, bias=bias)
    if kind == "int8":
        module: Any = bitsandbytes.nn.Linear8bitLt(d, f, bias=bias, has_fp16_weights=False)
    else:
        name, *words = kind.split()
        storage = getattr(torch, words[-1]) if words and words[-1] != "nested" else torch.uint8
        module = bitsandbytes.nn.Linear4bit(
            d, f, bias=bias, quant_type=name, compress_statistics="nested" in words, quant_storage=storage
        )
    module.load_state_dict(plain.state_dict())
    return module.to("cpu").eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "part", "d"), [*product(KINDS, PARTS, [10, 16, 64]), *product(STORED, ["whole", "alternating"], [12])]
)
def test_any_part_of_the_rows_multiplies_as_its_decoded_matrix(kind: str, part: str, d: int) -> None:
    module = packed_module(kind, 24, d)
    chosen = PARTS[part]
    weight = weight_of(module, "it", chosen)
    matrix = decoded(module).double()
    matrix = matrix if chosen is None else chosen(matrix).reshape(-1, d)
    assert weight.shape == matrix.shape
    assert torch.equal(weight.dense(torch.float64), matrix)
    x, y = torch.randn(3, d).double(), torch.randn(3, len(matrix)).double()
    gate, scale, out_scale, add = torch.randn(3, len(matrix)), torch.randn(d), torch.randn(len(matrix)), y
    found = weight.apply(x, scale=scale.double(), gate=gate.double(), out_scale=out_scale.double(), add=add)
    assert torch.allclose(found, ((x * scale) @ matrix.T) * gate * out_scale + add, rtol=1e-12, atol=1e-12)
    back = weight.apply_transposed(y, scale=out_scale.double(), gate=x, out_scale=scale.double(), add=x)
    assert torch.allclose(back, ((y * out_scale) @ matrix) * x * scale + x, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(0, 40), min_size=1, max_size=12), total=st.just(41))
def test_runs_are_the_rows_in_their_order(rows: list[int], total: int) -> None:
    runs = runs_of(lambda whole: whole[rows], total)
    assert [row for run in runs for row in run] == rows


class Foreign(nn.Module):
    """A linear module of some other format: int8 rows with one scale, and what its dequantize() says."""

    def __init__(
        self,
        *,
        turned: bool = False,
        lies: bool = False,
        noisy: bool = False,
        fails: bool = False,
        factor: float = 1.0,
        rounding: bool = False,
        broken: bool = False,
    ) -> None:
        super().__init__()
        self.fails, self.factor, self.rounding, self.broken = fails, factor, rounding, broken
        generator = torch.Generator().manual_seed(0)
        self.codes = nn.Parameter(
            torch.randint(-9, 9, (12, 12), generator=generator, dtype=torch.int8), requires_grad=False
        )
        self.bias = nn.Parameter(torch.arange(12.0), requires_grad=False)
        self.turned, self.lies, self.noisy = turned, lies, noisy

    def matrix(self) -> Tensor:
        return self.codes.float() / 7

    def dequantize(self) -> Tensor:
        if self.fails:
            raise RuntimeError("Expected all tensors to be on a device\nException raised from there")
        matrix = self.matrix().T if self.turned else self.matrix()
        matrix = matrix.flip(0) if self.lies else matrix
        if self.broken:
            matrix[3, 4] = math.nan
        return matrix * (1 + 1e-3 * torch.randn(12, 12)) if self.noisy else matrix

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        x = (x / step).round() * step if self.rounding else x
        return self.factor * x @ self.matrix().T + self.bias


@pytest.mark.parametrize("turned", [False, True])
def test_any_other_format_is_read_through_its_own_dequantize(turned: bool) -> None:
    module = Foreign(turned=turned)
    weight = weight_of(module, "it", lambda rows: rows[3::2])
    x, y = torch.randn(2, 12), torch.randn(2, 5)
    assert torch.allclose(weight.apply(x), x @ module.matrix()[3::2].T)
    assert torch.allclose(weight.apply_transposed(y), y @ module.matrix()[3::2])
    assert torch.equal(weight.dense(), module.matrix()[3::2])
    assert weight.dense(torch.float64).dtype is torch.float64
    assert torch.allclose(weight.apply(x.double()), x.double() @ module.matrix()[3::2].T.double())


def test_products_that_round_activations_are_told_from_their_weights() -> None:
    for rounding, least, most in ((False, 0.0, 0.0), (True, 1e-3, 2e-2)):
        module = Foreign(rounding=rounding)
        assert torch.equal(weight_of(module, "it").dense(), module.matrix())
        assert least <= distance_of_own_products(nn.Sequential(module)) <= most


@pytest.mark.parametrize("where", ["dequantize", "forward"])
def test_a_format_is_not_refused_because_memory_runs_out(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(Foreign, where, full)
    with pytest.raises(MemoryError):
        weight_of(Foreign(), "it")


def test_what_cannot_be_decoded_is_refused_in_one_line() -> None:
    class Closed(nn.Module):
        weight = nn.Parameter(torch.zeros(3, 3))

    another = r"does not multiply by what its dequantize\(\) gives"
    refused = [
        ("a Closed, neither dense nor", Closed()),
        ("remove_parametrizations", parametrizations.weight_norm(nn.Linear(3, 3))),
        (another, Foreign(lies=True)),
        (another, Foreign(noisy=True)),
        (another, Foreign(factor=1.05)),
        (another, Foreign(factor=1.05, rounding=True)),
        (r"cannot be dequantised here \(Expected all tensors to be on a device\)", Foreign(fails=True)),
    ]
    for message, module in refused:
        with pytest.raises(UnsupportedModelError, match=message) as caught:
            weight_of(module, "blocks.1.mlp.up_proj")
        assert "blocks.1.mlp.up_proj" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"^it \(Foreign\): its dequantize\(\) gives 1 NaN or infinite values of 144"):
        weight_of(Foreign(broken=True), "it")


def test_a_module_that_rounds_its_weight_in_every_pass_is_refused() -> None:
    module = bitsandbytes.nn.Linear8bitLt(8, 8, has_fp16_weights=True)
    with pytest.raises(UnsupportedModelError, match="load the model with llm_int8_has_fp16_weight=False"):
        weight_of(module, "it")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_module_that_is_not_quantised_yet_is_refused(kind: str) -> None:
    if kind == "int8":
        module: Any = bitsandbytes.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
    else:
        module = bitsandbytes.nn.Linear4bit(8, 8, quant_type="nf4")
    with pytest.raises(UnsupportedModelError, match="it is not quantised: move the model to its device"):
        weight_of(module, "it")
    module.weight = nn.Embedding(8, 8).weight
    with pytest.raises(UnsupportedModelError, match=r"another module's.* name it in llm_int8_skip_modules"):
        weight_of(module, "it")


def test_products_that_are_not_linear_or_not_adjoint_are_refused() -> None:
    matrix = torch.randn(6, 50)

    class Rounding(DenseWeight):
        def apply(self, x: Tensor, **_: Any) -> Tensor:
            return (x * 20).round() / 20 @ self.parameter.T

    class Lopsided(DenseWeight):
        def apply_transposed(self, y: Tensor, **_: Any) -> Tensor:
            return y @ self.parameter * 1.01

    require_linear(DenseWeight(matrix), "it")
    with pytest.raises(UnsupportedModelError, match="it: its product is not linear"):
        require_linear(Rounding(matrix), "it")
    with pytest.raises(UnsupportedModelError, match="it: its product and the transposed one do not agree"):
        require_linear(Lopsided(matrix), "it")


def test_plain_modules_are_not_taken_for_packed_ones() -> None:
    plain = nn.Linear(4, 4)
    assert not any(map(is_packed, (plain, nn.Embedding(3, 4), nn.Sequential(Foreign()), nn.LayerNorm(4))))
    assert is_packed(Foreign())
    model = tiny_models.llama()
    assert callable(model.dequantize)  # of transformers' own, for the modules inside
    assert not is_packed(model)


def test_a_bias_beside_packed_weights_is_made_of_numbers() -> None:
    model = nn.Sequential(Foreign())
    fingerprint_of(model, finite_as="it")
    model[0].bias[3] = math.nan
    with pytest.raises(ModelError, match=r"weight '0\.bias' holds 1 NaN"):
        fingerprint_of(model, finite_as="it")


@pytest.mark.parametrize("kind", ["nf4 nested", "int8"])
def test_the_module_of_a_copy_is_differentiable_in_every_mode(kind: str) -> None:
    module = packed_module(kind, 12, 10, bias=True)
    copied = Decoded(weight_of(module, "it"), module.bias)
    matrix = decoded(module).double()
    x, v, u = torch.randn(2, 3, 10).double(), torch.randn(2, 3, 10).double(), torch.randn(4, 2, 3, 12).double()
    assert torch.allclose(copied(x), x @ matrix.T + module.bias)
    assert copied(x.bfloat16()).dtype is torch.bfloat16
    across = torch.func.vmap(copied, in_dims=1, out_dims=1)(x)
    assert torch.allclose(across, x @ matrix.T + module.bias)
    assert torch.allclose(torch.func.jvp(copied, (x,), (v,))[1], v @ matrix.T)
    _, pull = torch.func.vjp(copied, x)
    assert torch.allclose(torch.func.vmap(pull)(u)[0], u @ matrix)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(copied(leaf), leaf, u[0])
    assert torch.allclose(gradient, u[0] @ matrix)

"""Models packed by the real torchao and HQQ: J is that of the matrices that their own ``dequantize`` gives."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from detjac_lanczos.models import load_model
from detjac_lanczos.operators import detach
from tests import tiny_models
from tests.oracles import OracleA, embeddings_of, errors
from tests.tiny_models import dense

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(7)[0]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 2}
REASON = "`make formats` installs it apart: transformers imports it into every process where it finds it"
NAMES = {"int8": "Int8Tensor", "float8": "Float8Tensor", "hqq": "HQQLinear"}


def packed(kind: str) -> Any:
    """Return a tiny Llama with the linear modules of its blocks packed."""
    model = dense.llama(torch.float32, **SIZES)
    if kind == "hqq":
        quantize = pytest.importorskip("hqq.core.quantize", reason=REASON)
        config = quantize.BaseQuantizeConfig(nbits=4, group_size=64)
        for name, module in list(model.model.named_modules()):
            if isinstance(module, nn.Linear):
                made = quantize.HQQLinear(module, config, compute_dtype=torch.float32, device="cpu")
                model.model.set_submodule(name, made)
        return model
    torchao = pytest.importorskip("torchao.quantization", reason=REASON)
    config = torchao.Int8WeightOnlyConfig() if kind == "int8" else torchao.Float8WeightOnlyConfig()
    torchao.quantize_(model.model, config)
    return model


def unpacked(model: Any) -> Any:
    twin = dense.llama(torch.float32, **SIZES)
    held = dict(model.named_modules())
    for name, module in twin.model.named_modules():
        if isinstance(module, nn.Linear):
            owner = held[f"model.{name}"]
            module.weight.data = (owner if hasattr(owner, "W_q") else owner.weight).dequantize().float().detach()
    return twin


@pytest.mark.parametrize("kind", NAMES)
def test_the_jacobian_is_that_of_what_the_format_decodes_to(kind: str) -> None:
    model = packed(kind)
    twin = unpacked(model)
    original = dense.llama(torch.float32, **SIZES).model.layers[0].mlp.up_proj.weight
    moved = (twin.model.layers[0].mlp.up_proj.weight - original).norm() / original.norm()
    assert 1e-3 < moved < 0.2
    loaded = load_model(model)
    network = detach(loaded, input_ids=IDS)
    assert loaded.packing == NAMES[kind]
    expected = OracleA(twin, embeddings_of(twin, IDS), "gate").jacobian("embeddings", "output", len(IDS) - 1)
    J = network.jacobian("joint")
    assert max(errors(J.dense().view(expected.shape), expected)) <= 2e-6
    assert max(errors(J.T.dense().T.view(expected.shape), expected)) <= 2e-6


@pytest.mark.parametrize("kind", NAMES)
def test_every_packed_byte_counts_in_the_fingerprint(kind: str) -> None:
    model = packed(kind)
    first = load_model(model).fingerprint
    again = copy.deepcopy(model)
    assert load_model(again).fingerprint == first
    module = again.model.layers[1].mlp.down_proj
    codes = module.W_q if kind == "hqq" else module.weight.qdata
    codes.data.view(torch.uint8).view(-1)[5] ^= 1
    assert load_model(again).fingerprint != first

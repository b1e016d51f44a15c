"""MXFP4: decoded as transformers unpacks it, bit for bit, and a gpt-oss that is read, run and swept packed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts, convert_moe_packed_tensors

from detjac_kernels.mxfp4 import PackedMxfp4
from detjac_lanczos.errors import InputError, UnsupportedModelError
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.models.outline import outline, weight_bytes
from detjac_lanczos.operators import detach, mlp
from tests import tiny_models
from tests.models.conftest import tiny_tokenizer
from tests.oracles import OracleA, embeddings_of, errors
from tests.tiny_models.moe import gpt_oss, qwen3_moe

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(7)[0]


def random_bytes(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as gpt-oss is published: codes and scales of the experts under their names, all else dense."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    gpt_oss(torch.float32, hidden_size=64, intermediate_size=96).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, d, f = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = random_bytes(experts, f, d // 32, 16)
        tensors[f"{name}_scales"] = random_bytes(experts, f, d // 32, low=120, high=124)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed(folder: Path) -> LoadedModel:
    return load_model(folder, dtype="float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_rows_decode_as_transformers_unpacks_them(dtype: torch.dtype) -> None:
    codes, scales = random_bytes(2, 10, 3, 16), random_bytes(2, 10, 3, high=255)
    expected = convert_moe_packed_tensors(codes, scales, dtype=dtype)[1].T
    matrix = PackedMxfp4(codes[1].flatten(1), scales[1])
    for rows in (range(10), range(3, 4), range(1, 10, 2), range(2, 9, 3)):
        assert torch.equal(matrix.decode(rows, dtype), expected[rows.start : rows.stop : rows.step])


@pytest.mark.parametrize(
    ("codes", "scales"), [((4, 16), (4, 2)), ((4, 20), (4, 1)), ((4, 16), (3, 1))], ids=["blocks", "width", "rows"]
)
def test_tensors_that_do_not_belong_together_are_refused(codes: tuple[int, int], scales: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="MXFP4 matrix"):
        PackedMxfp4(torch.zeros(codes, dtype=torch.uint8), torch.zeros(scales, dtype=torch.uint8))


def test_a_checkpoint_stays_packed(packed: LoadedModel, folder: Path) -> None:
    stored, held = load_file(folder / "model.safetensors"), packed.model.state_dict()
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[name], value) for name, value in stored.items())
    assert (packed.packing, packed.dtype) == ("MXFP4 experts", torch.float32)


def test_a_plan_counts_packed_experts(packed: LoadedModel, folder: Path) -> None:
    outlined, _, kind = outline(folder, "float32")
    assert sum(weight_bytes(outlined, kind).values()) == sum(value.nbytes for value in packed.model.parameters())
    for model in (outline(tiny_models.llama().config)[0], outline(qwen3_moe().config)[0]):
        with pytest.raises(InputError, match="has no weights that mxfp4 packs; nf4"):
            weight_bytes(model, "mxfp4")


@pytest.mark.parametrize("freeze", ["gate", "up"])
def test_the_jacobian_is_that_of_the_unpacked_experts(packed: LoadedModel, folder: Path, freeze: Any) -> None:
    twin = GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert twin.model.layers[0].mlp.experts.gate_up_proj.dtype is torch.float32
    network = detach(packed, input_ids=IDS, freeze=freeze)
    twin.config._experts_implementation = "eager"
    oracle = OracleA(twin, embeddings_of(twin, IDS), freeze)
    for target, place in {"output": "output", "mlp.1": mlp(1)}.items():
        expected = oracle.jacobian("embeddings", target, len(IDS) - 1)
        J = network.jacobian("joint", target=place)
        assert max(errors(J.dense().view(expected.shape), expected)) <= 2e-6, target
        assert max(errors(J.T.dense().T.view(expected.shape), expected)) <= 2e-6, target
    with torch.no_grad():
        expected = twin(torch.tensor([IDS])).logits[0, -1]
    assert (network.streams.logits[0] - expected).norm() <= 2e-6 * expected.norm()
    assert "MXFP4 experts" in repr(network.jacobian("joint"))


def test_the_ordinary_jacobian_is_that_of_the_unpacked_experts(packed: LoadedModel, folder: Path) -> None:
    twin = GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found, expected = (detach(m, input_ids=IDS).jacobian("joint", frozen=False) for m in (packed, (twin, None)))
    assert max(errors(found.T.dense(), expected.T.dense())) <= 2e-6


def test_experts_in_the_order_of_other_kernels_are_refused(folder: Path) -> None:
    model = gpt_oss(torch.float32, hidden_size=64, intermediate_size=96)
    model.model.layers[1].mlp.experts = Mxfp4GptOssExperts(model.config)
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.experts .*load_model"):
        detach((model, None), input_ids=IDS)

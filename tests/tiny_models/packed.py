"""Models quantised by transformers and bitsandbytes, and the same ones dense, decoded here value by value."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "fp4 nested": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "nf4 as bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": "bfloat16",
    },
    "int8": {"load_in_8bit": True},
}


def quantised(model: Any, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model as transformers quantises it; in float64 what is not packed is converted afterwards."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read_quantised(Path(folder), kind, dtype)


def read_quantised(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    stored = torch.float32 if dtype is torch.float64 else dtype
    config = BitsAndBytesConfig(**CONFIGS[kind])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=stored, quantization_config=config).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype is stored:
            tensor.data = tensor.data.to(dtype)
    return model


def decoded(module: Any) -> Tensor:
    """Return the matrix (f, d) of a bitsandbytes module from its bytes, by the words of its format."""
    stored = module.weight.data
    if stored.dtype is torch.int8:
        scale = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        return stored.float() * (scale.float() / 127)[:, None]
    state, stored = module.weight.quant_state, stored.flatten().view(torch.uint8).int()
    f, d = state.shape
    values = state.code[torch.stack([stored // 16, stored % 16], dim=1).flatten()[: f * d]]
    scales = state.absmax
    if state.nested:
        inner = state.state2.absmax.repeat_interleave(256)[: len(scales)]
        scales = state.state2.code[scales.int()] * inner + state.offset
    return (values * scales.repeat_interleave(state.blocksize)[: f * d]).view(f, d)


def dense_twin(model: Any, original: Any) -> Any:
    """Return ``original``, in the dtype of ``model``, with the decoded weights of ``model`` in its linear modules."""
    twin = copy.deepcopy(original).to(model.dtype)
    twin.config._experts_implementation = "eager"  # the grouped product takes no float64
    packed = dict(model.named_modules())
    state = model.state_dict()
    for name, parameter in twin.named_parameters():
        path = name.rpartition(".")[0]
        if type(packed[path]).__module__.startswith("bitsandbytes") and name.endswith("weight"):
            matrix = decoded(packed[path])
            parameter.data = (matrix if type(twin.get_submodule(path)) is nn.Linear else matrix.T).to(model.dtype)
        else:
            parameter.data = state[name].to(model.dtype)
    return twin.eval()

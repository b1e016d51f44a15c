"""4-bit matrices and a model of them, made directly in packed form: random codes, scales and second scales.

No matrix is quantised and no bytes are used twice: every block has its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.functional import QuantState, get_4bit_type
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from detjac_kernels.four_bit import Nested, Packed4

BLOCK, OUTER = 64, 256
STD = 0.02
"""About the standard deviation of the decoded weights."""


def random_matrix(f: int, d: int, device: torch.device) -> Packed4:
    """Return an NF4 matrix with double quantisation: uniform codes, scales around 0.03."""
    blocks = f * d // BLOCK
    codes = torch.randint(0, 256, (f * d // 2,), dtype=torch.uint8, device=device)
    absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8, device=device)
    table = torch.linspace(-1, 1, 256, device=device)
    outer = torch.full((-(-blocks // OUTER),), STD / 2, device=device)
    outer *= 1 + 0.1 * torch.rand(outer.shape, device=device)
    nf4 = get_4bit_type("nf4", device=device)
    return Packed4(codes, absmax, nf4, BLOCK, (f, d), Nested(table, outer, OUTER, 1.7 * STD))


Matrix = Callable[[int, int, torch.device], Packed4]
"""Makes a packed matrix (f, d) on a device."""


def random_llama(config: LlamaConfig, device: torch.device, matrix: Matrix = random_matrix) -> LlamaForCausalLM:
    """Return a Llama whose linear modules are bitsandbytes' ``Linear4bit``; embeddings, norms and head are dense."""
    layers, dtype = config.num_hidden_layers, config.dtype
    config.num_hidden_layers, config.layer_types = 0, None
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    # Dense tensors are made small at once, blocks are made without memory and given theirs in packed form.
    config.num_hidden_layers = layers
    for index in range(layers):
        with torch.device("meta"):
            layer = LlamaDecoderLayer(config, index)
        _pack(layer, device, dtype, matrix)
        model.model.layers.append(layer)
    return model.eval().requires_grad_(False)


def _pack(layer: nn.Module, device: torch.device, dtype: torch.dtype, matrix: Matrix) -> None:
    for name, module in list(layer.named_modules()):
        parent = layer.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            made = matrix(module.out_features, module.in_features, device)
            setattr(parent, name.rpartition(".")[2], _linear(made, dtype))
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            ones = torch.ones(module.weight.shape, dtype=dtype, device=device)
            module.weight = nn.Parameter(ones, requires_grad=False)


def _linear(packed: Packed4, dtype: torch.dtype) -> Linear4bit:
    f, d = packed.shape
    nested: Any = packed.nested
    state = QuantState(
        absmax=packed.absmax,
        shape=torch.Size((f, d)),
        code=packed.table,
        blocksize=packed.block,
        quant_type="nf4",
        dtype=dtype,
        offset=torch.tensor(nested.offset, device=packed.codes.device),
        state2=QuantState(
            absmax=nested.absmax, code=nested.table, blocksize=nested.block, dtype=torch.float32, quant_type=None
        ),
    )
    module = Linear4bit(d, f, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    module.support_avx512bf16_for_cpu = False
    module.weight = Params4bit(
        packed.codes.view(-1, 1),
        requires_grad=False,
        quant_state=state,
        blocksize=packed.block,
        compress_statistics=True,
        quant_type="nf4",
        module=module,
        bnb_quantized=True,
    )
    module.quant_state = state
    return module

"""4-bit matrices and a model of them, made directly in packed form: random codes, scales and second scales.

No matrix is quantised and no bytes are used twice: every block has its own.
"""

from typing import Any

import torch
from bitsandbytes.functional import QuantState, get_4bit_type
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from bench.gpu.sizes import Sizes
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


def random_llama(sizes: Sizes) -> LlamaForCausalLM:
    """Return a Llama whose linear modules are bitsandbytes' ``Linear4bit``; embeddings, norms and head are dense."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        num_hidden_layers=0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype=sizes.dtype,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(sizes.dtype)
    try:
        with torch.device(sizes.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    # Dense tensors are made small at once, blocks are made without memory and given theirs in packed form.
    config.num_hidden_layers = sizes.layers
    config.layer_types = None if getattr(config, "layer_types", None) is None else ["full_attention"] * sizes.layers
    for index in range(sizes.layers):
        with torch.device("meta"):
            layer = LlamaDecoderLayer(config, index)
        _pack(layer, sizes)
        model.model.layers.append(layer)
    return model.eval().requires_grad_(False)


def _pack(layer: nn.Module, sizes: Sizes) -> None:
    for name, module in list(layer.named_modules()):
        parent = layer.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            made = random_matrix(module.out_features, module.in_features, sizes.device)
            setattr(parent, name.rpartition(".")[2], _linear(made, sizes.dtype))
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            ones = torch.ones(module.weight.shape, dtype=sizes.dtype, device=sizes.device)
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

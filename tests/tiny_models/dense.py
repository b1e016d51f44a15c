"""Decoders whose MLPs are all dense."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.tiny_models.draw import VOCABULARY, drawn

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
WINDOWED = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


def llama(dtype: torch.dtype = torch.float64, *, bias: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Return a Llama with grouped heads, head width ≠ hidden size / heads; ``bias`` in attention and MLP alike."""
    config = transformers.LlamaConfig(**SIZES | {"attention_bias": bias, "mlp_bias": bias} | changes)
    return drawn(transformers.LlamaForCausalLM(config), dtype, seed)


def gemma(dtype: torch.dtype = torch.float64, *, bias: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Return a Gemma 3: sliding windows that cut a prompt of `LENGTH` tokens, mixed with a block of full attention."""
    options = SIZES | WINDOWED | {"query_pre_attn_scalar": 7, "attention_bias": bias}
    return drawn(
        transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**options | changes)), dtype, seed, norm=0
    )


DENSE: dict[str, Callable[[torch.dtype], Any]] = {
    "Llama": llama,
    "Llama biased": lambda dtype: llama(dtype, bias=True),
    "Gemma 3": gemma,
    "Gemma 3 biased": lambda dtype: gemma(dtype, bias=True),
}

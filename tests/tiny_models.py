"""Tiny random decoders with every parameter away from its default, each exercising what its family can do."""

from typing import Any

import torch

from detjac_lanczos.models import LoadedModel, load_model

LENGTH = 12
VOCABULARY = 40


def llama(dtype: torch.dtype = torch.float64, *, bias: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Return a Llama with grouped heads, head width ≠ hidden size / heads; ``bias`` in attention and MLP alike."""
    from transformers import LlamaConfig, LlamaForCausalLM

    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 64,
        "attention_bias": bias,
        "mlp_bias": bias,
    }
    return _randomised(LlamaForCausalLM(LlamaConfig(**options | changes)), dtype, seed)


def gemma(dtype: torch.dtype = torch.float64, *, bias: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Return a Gemma 3: sliding windows that cut a prompt of `LENGTH` tokens, mixed with a block of full attention."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "query_pre_attn_scalar": 7,
        "max_position_embeddings": 64,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "attention_bias": bias,
    }
    return _randomised(Gemma3ForCausalLM(Gemma3TextConfig(**options | changes)), dtype, seed)


def loaded(model: Any) -> LoadedModel:
    """Return the model behind `load_model`, without a tokenizer."""
    return load_model(model)


def prompt_ids(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random token ids, one list for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def _randomised(model: Any, dtype: torch.dtype, seed: int) -> Any:
    """Draw weights in ``dtype`` itself: float64 values that no float32 holds."""
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 2:
            fan_in = 1 if "embed_tokens" in name else parameter.shape[1]
            value = noise * (1.3 / fan_in**0.5)
        elif name.endswith("bias"):
            value = 0.4 * noise
        else:
            value = (0.0 if "Gemma" in type(model).__name__ else 1.0) + 0.3 * noise
        parameter.data.copy_(value)
    return model

"""A two-block Llama in one GGUF file, and files like it with a fault."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.conftest import WORDS, tiny_llama

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}
METADATA = {
    "name": "tiny",
    "context_length": 40,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 96,
    "head_count": 4,
    "head_count_kv": 2,
    "rope_dimension_count": 16,
    "rope_freq_base": 5000.0,
    "layer_norm_rms_eps": 3e-5,
    "vocab_size": len(WORDS),
    "tokenizer_model": "gpt2",
    "token_list": ["<unk>", "<s>", "</s>", *(chr(ord("a") + i) for i in range(26)), "ab", "cd", "abcd"],
    "token_types": [3, 3, 3] + [1] * 29,
    "token_merges": ["a b", "c d", "ab cd"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unk_token_id": 0,
}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    left_out: Iterable[str] = (),
    further: Mapping[str, np.ndarray] | None = None,
    architecture: str = "llama",
    model: Any = None,
    names: Mapping[str, str] = NAMES,
) -> Path:
    """Write a tiny Llama, or another model of its sizes, with matrices in Q8_0, a tied head and a byte-pair tokenizer.

    `metadata` is named as the methods ``add_*`` of a GGUFWriter, None leaves a key out, a key with a dot is written as
    it is; `left_out` and `further` are tensors; `names` are transformers' parts of names and the file's.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (METADATA | dict(metadata or {})).items():
        if "." in key:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        elif value is not None:
            getattr(writer, f"add_{key}")(value)
    for name, parameter in (model or tiny_llama()).named_parameters():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        values = parameter.detach().numpy()
        if name in left_out:
            continue
        if values.ndim != 2:
            writer.add_tensor(name, values[:, 0] if values.ndim == 3 else values)
        else:
            packed = gguf.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name, values in (further or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""Unpack a GGUF file into an ordinary model folder: dequantised float32 weights, configuration, tokenizer.

transformers reads the format and then refuses `save_pretrained`, since it calls the result quantised; the tensors are
plain by then, so they are written here one by one.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import ModelError, first_line
from detjac_lanczos.models.belonging import require_belonging
from detjac_lanczos.models.fingerprint import fingerprint_of
from detjac_lanczos.models.gguf_rope import set_rope

DIVISORS = "rope_freqs.weight"
_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Blocks of the models of 27B, whose queries are scaled by the width per head, not by that of a head."""
_COPY = "get a whole copy of the file, or the model's folder"


def unpack(path: Path, folder: Path) -> str:
    """Write the model in the GGUF file `path` to `folder`, loadable by ``from_pretrained``; return its fingerprint.

    Raises
    ------
    ModelError
        If the file is truncated, damaged, one part of several, of an architecture transformers cannot read, or holds
        non-finite weights, other weights than its architecture, or rotary positions that cannot be followed.
    OSError
        If the folder cannot be written.
    """
    model, tokenizer = _read(path)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype"):
        config.pop(key, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    try:
        tokenizer.save_pretrained(folder)
        _save_weights(model, folder / "model.safetensors")
    except OSError:
        raise
    except Exception as error:  # tokenizers and safetensors have errors of their own for a disk that is full
        raise OSError(str(error).strip()) from error
    return fingerprint_of(model, finite_as=path.name)


def _read(path: Path) -> tuple[Any, Any]:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is no GGUF file (it does not begin with 'GGUF'); get a sound copy of it")
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Damage shows itself anywhere in the parser (a wild length, a bad enum, a short array), so any failure means it.
    try:
        reader = GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
        if (parts := metadata.get("split.count", 1)) > 1:
            raise ModelError(f"{path} is one part of {parts}; join them with `llama-gguf-split --merge` of llama.cpp")
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        require_belonging(model, info, str(path), _COPY)
        _require_all_taken(model, info, metadata["general.architecture"], tensors, path)
        set_rope(
            model,
            metadata,
            torch.tensor(tensors[DIVISORS].data, device="cpu") if DIVISORS in tensors else None,
            str(path),
        )
        _set_attention(model.config, metadata)
        _require_epsilon(model, metadata, path)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read ({first_line(error)}); the file is damaged or of an unknown architecture"
        ) from error
    return model, tokenizer


def _require_all_taken(
    model: Any, info: Mapping[str, Any], architecture: str, names: Iterable[str], path: Path
) -> None:
    """Refuse a file of which transformers would drop weights without a word."""
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if architecture in GGUF_ARCHS:  # it takes every tensor of these, and says which were of no use
        left = sorted(info["unexpected_keys"] - {DIVISORS})
    else:
        taken = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(architecture, TensorProcessor)())
        left = [name for name in names if not {name, name.removesuffix(".weight")} & {*taken, DIVISORS}]
    if left:
        raise ModelError(
            f"{path} holds {len(left)} weights that its architecture ({architecture}) has no place for here, the first "
            f"is {left[0]!r}; {_COPY}"
        )


def _set_attention(config: Any, metadata: Mapping[str, Any]) -> None:
    """Write into a configuration what transformers drops: soft caps, Phi-3's window, the scale of queries of Gemma.

    The scale has no key: llama.cpp knows their largest models by the number of blocks, and so does this.
    """
    architecture = metadata["general.architecture"]
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if f"{architecture}.{cap}" in metadata:
            setattr(config, cap, metadata[f"{architecture}.{cap}"])
    if (window := metadata.get(f"{architecture}.attention.sliding_window")) and architecture == "phi3":
        config.sliding_window = window
    if architecture in _LARGEST:
        largest = config.num_hidden_layers == _LARGEST[architecture]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim


def _require_epsilon(model: Any, metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse a file whose norms would be of another model: transformers has an epsilon where the file has none."""
    said = [value for key, value in metadata.items() if key.endswith("epsilon")]
    taken = [value for key, value in model.config.to_dict().items() if "eps" in key and isinstance(value, float)]
    if not any(math.isclose(a, b, rel_tol=1e-6) for a in said for b in taken):
        raise ModelError(f"{path} says no epsilon of its norms that can be read here ({said or 'none'}); {_COPY}")


def _save_weights(model: torch.nn.Module, path: Path) -> None:
    """Save each tensor once; transformers ties the left-out ones again as the configuration says."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in places:
            places.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})

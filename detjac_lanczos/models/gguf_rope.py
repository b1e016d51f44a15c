"""Rotary positions as a GGUF file says them; transformers reads the base of some architectures and drops the rest.

The keys are ``<architecture>.rope.*``; their meaning and defaults are those of llama.cpp (``llama-model.cpp``,
``ggml_rope_yarn``).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import ModelError

_NEUTRAL = {"attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0}
_READ = ("type", "factor", "original_context_length", "finetuned")
_BETAS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_BESIDE_SCALING = {"rope_theta", "partial_rotary_factor"}
"""What stays where transformers' own default scaling (gpt-oss: YaRN) is not that of the file."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama since 3.1 has beside its factor (its ``config.json``)."""


def set_rope(model: Any, metadata: Mapping[str, Any], divisors: Tensor | None, name: str) -> None:
    """Write the rotary positions of a GGUF file into the configuration of the model that was read from it.

    Parameters
    ----------
    model : PreTrainedModel
        Its ``config.rope_parameters`` are changed; where kinds of layers differ, those of full attention.
    metadata : mapping
        Of the file.
    divisors : torch.Tensor, optional
        Its tensor ``rope_freqs.weight`` (head_dim / 2): what each frequency is divided by.
    name : str
        Of the file, for messages.

    Raises
    ------
    ModelError
        Naming the key that cannot be followed.
    """
    whole = getattr(model.config, "rope_parameters", None)
    rotary = next((part for part in model.modules() if any("inv_freq" in name for name in part._buffers)), None)
    if not whole or rotary is None:
        return
    prefix = f"{metadata['general.architecture']}.rope."
    said = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    parameters = whole.get("full_attention", whole)
    parameters["rope_theta"] = said.get("freq_base", 10000.0)
    if "freq_base_swa" in said and "sliding_attention" in whole:
        whole["sliding_attention"]["rope_theta"] = said["freq_base_swa"]
    scaling = _scaling(said, f"{name}: {prefix}", model.config.max_position_embeddings)
    if parameters.get("rope_type", "default") != scaling["rope_type"]:
        for key in parameters.keys() - _BESIDE_SCALING:
            del parameters[key]
    parameters |= scaling
    width = 2 * len(_frequencies(rotary))
    if said.get("dimension_count", width) != width:
        raise _not_followed(f"{name}: {prefix}dimension_count", said["dimension_count"], f"transformers turns {width}")
    if divisors is not None and not (divisors == 1).all():
        _divide(model.config, parameters, rotary, divisors, name)


def _scaling(said: Mapping[str, Any], prefix: str, context: int) -> dict[str, Any]:
    """Return the parameters that transformers has for ``rope.scaling.*``; "default" for frequencies as they are."""
    scaling = {key.removeprefix("scaling."): value for key, value in said.items() if key.startswith("scaling.")}
    factor = float(scaling.get("factor", said.get("scale_linear", 0.0)))
    kind = scaling.get("type", "linear")
    if kind == "none":
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise _not_followed(f"{prefix}scaling.type", kind, "linear and yarn are read")
    for key, value in scaling.items():
        if key not in (*_READ, *_BETAS) and value != _NEUTRAL.get(key):
            raise _not_followed(f"{prefix}scaling.{key}", value, "transformers has no such scaling")
    if factor in (0.0, 1.0):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    betas = {name: float(scaling[key]) for key, name in _BETAS.items() if key in scaling}
    original = scaling.get("original_context_length", context)
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original} | betas


def _divide(config: Any, parameters: dict[str, Any], rotary: Any, divisors: Tensor, name: str) -> None:
    """Find the parameters that divide frequencies so: those there are, or Llama 3's, whose factor is the largest."""
    theta, dim = parameters["rope_theta"], 2 * len(divisors)
    wanted = 1 / (
        theta ** (torch.arange(0, dim, 2, dtype=torch.float64, device=divisors.device) / dim) * divisors.double()
    )
    llama3 = {"rope_type": "llama3", "factor": float(divisors.max())} | LLAMA3
    for further in ({}, llama3) if parameters.get("rope_type") == "default" else ({},):
        parameters |= further
        have = _frequencies(type(rotary)(config))
        if have.shape == wanted.shape and torch.allclose(have.double(), wanted, rtol=1e-5, atol=1e-20):
            return
    raise ModelError(
        f"{name}: rope_freqs.weight divides the rotary frequencies as no Llama 3 does; take the model's folder, whose "
        "config.json says how they are scaled"
    )


def _frequencies(rotary: Any) -> Tensor:
    """Return those of full attention, or of the one kind of layers that there is."""
    held: dict[str, Tensor] = {name: value for name, value in rotary._buffers.items() if name.endswith("inv_freq")}
    return held.get("full_attention_inv_freq", next(iter(held.values())))


def _not_followed(key: str, value: Any, reason: str) -> ModelError:
    return ModelError(f"{key} is {value!r}, which cannot be followed ({reason}); take the model's folder instead")

"""Whether weights and configuration belong together: transformers makes up what is missing, and drops what is left."""

import re
from collections.abc import Mapping
from typing import Any

from detjac_lanczos.errors import ModelError, UnsupportedModelError
from detjac_lanczos.models.text_model import text_config_of

_ONCE_KEPT = ("bias", "masked_bias", "version")
"""Masks that attention modules once kept as buffers, and fairseq's mark."""
_COMPUTED = ("causal_mask", "norm_factor", "cos_cached", "sin_cached", "k_scale", "v_scale")
"""What older modules kept beside their weights, and scales of a cache: nothing that a forward pass here reads."""
_BIAS_FIELDS = {
    "attention": ("attention_bias", "qkv_bias", "use_qkv_bias", "use_bias", "bias"),
    "mlp": ("mlp_bias", "use_bias", "bias"),
}


def require_belonging(model: Any, info: Mapping[str, Any], name: str, remedy: str) -> None:
    """Refuse a model of which transformers would fill weights with random numbers.

    Parameters
    ----------
    model : PreTrainedModel
    info : mapping
        What ``from_pretrained`` gives with ``output_loading_info``, mismatched sizes ignored.
    name : str
        What messages call it.
    remedy : str
        What to do.

    Raises
    ------
    ModelError
        If it has no block, or weights are missing or of another shape.
    UnsupportedModelError
        If it was made for another class.
    """
    if getattr(text_config_of(model), "num_hidden_layers", None) == 0:
        raise ModelError(f"{name} has no blocks (num_hidden_layers is 0), and so no Jacobian to speak of; {remedy}")
    if missing := sorted(info["missing_keys"]):
        named = model.config.architectures or [type(model).__name__]
        if type(model).__name__ not in named:
            raise no_causal_model(name, named)
        raise ModelError(
            f"{name} lacks {len(missing)} weights of its architecture, the first is {missing[0]!r}; {remedy}"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        key, stored, configured = mismatched[0]
        raise ModelError(
            f"{name}: weight {key!r} has shape {tuple(stored)}, its configuration says {tuple(configured)}; {remedy}"
        )


def require_all_taken(model: Any, info: Mapping[str, Any], name: str, *, packed: bool) -> None:
    """Refuse a model of which transformers would drop weights: further blocks, biases, norms of its blocks.

    What it drops on purpose (``_keys_to_ignore_on_load_unexpected``) is no longer in `info`; towers beside the decoder
    are not in the model, and may be left out.

    Parameters
    ----------
    model, info, name
        As for `require_belonging`.
    packed : bool
        Whether the weights are stored packed, with scales that are no parameters; then further blocks alone are told.

    Raises
    ------
    ModelError
        Naming the first of them.
    """
    unexpected = sorted(info["unexpected_keys"])
    known = model.state_dict().keys()
    if further := [key for key in unexpected if re.sub(r"\.\d+\.", ".0.", key, count=1) in known]:
        raise ModelError(
            f"{name} holds {len(further)} weights of blocks that its configuration leaves out, the first is "
            f"{further[0]!r}; get the config.json that belongs to the weights"
        )
    if packed:
        return
    modules = dict(model.named_modules())
    if dropped := [key for key in unexpected if _is_of_the_decoder(modules, key)]:
        field = _left_out_by(text_config_of(model), dropped[0])
        raise ModelError(
            f"{name} holds {len(dropped)} weights that its configuration has no place for{field}, the first is "
            f"{dropped[0]!r}; get the config.json that belongs to the weights"
        )


def no_causal_model(name: str, architectures: list[str]) -> UnsupportedModelError:
    """Return the error for a model that is no causal language model."""
    return UnsupportedModelError(
        f"{name} is a {', '.join(architectures)}, no causal language model that transformers knows; "
        "`detjac models` lists the supported families"
    )


def _is_of_the_decoder(modules: Mapping[str, Any], key: str) -> bool:
    """Tell whether a tensor belongs to a module of the model, or to one of its blocks."""
    path, _, leaf = key.rpartition(".")
    if "inv_freq" in key or leaf in _COMPUTED:
        return False
    if path in modules:
        computed = leaf in modules[path]._buffers or (leaf in _ONCE_KEPT and "weight" not in modules[path]._parameters)
        return bool(path) and not computed
    block = re.match(r"(?:\w+\.)*?\w+\.\d+(?=\.)", key)
    return block is not None and block[0] in modules


def _left_out_by(config: Any, key: str) -> str:
    """Return which field of a configuration says that there is no such bias, " (attention_bias is false)", or ""."""
    part = re.search(r"\.(mlp|\w*attn|attention)\..*bias$", key)
    fields = _BIAS_FIELDS["mlp" if part and part[1] == "mlp" else "attention"] if part else ()
    said = [field for field in fields if getattr(config, field, None) is False]
    return f" ({said[0]} is false)" if said else ""

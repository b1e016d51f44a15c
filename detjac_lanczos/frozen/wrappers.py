"""A declared text decoder inside a larger model, such as one that also sees images or hears."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.words import Project
from detjac_lanczos.models.text_model import text_config_of


def family_inside(model: Any, families: Iterable[Family]) -> Family | None:
    """Return the family of the text decoder inside a model, with its paths there; None where it has none of these.

    The decoder is known by the configuration of the text. Where the model holds the whole causal language model, those
    logits are its own; where it holds the decoder alone, its logits are its head times the output. Whether that is all
    it does with text is for a prompt to show.

    Raises
    ------
    UnsupportedModelError
        If the model is made of several text models.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    text = text_config_of(model)
    if text is model.config or not _runs_on_text_alone(model):
        return None
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
    family = next((f for f in families if f.serves(causal, text)), None)
    if family is None:
        return None
    named = replace(family, name=f"{family.name} in {type(model).__name__}", classes=(type(model).__name__,))
    whole = _path(model, lambda module: type(module).__name__ == causal)
    if whole is not None:
        return replace(named, decoder=f"{whole}.{family.decoder}", causal_model=whole)
    inside = family.decoder.partition(".")[2]
    base = _path(model, lambda module: type(module).__name__ == MODEL_MAPPING_NAMES[text.model_type])
    head = _path(model, lambda module: module is model.get_output_embeddings())
    if base is None or head is None:
        return None
    return replace(named, decoder=f"{base}.{inside}".rstrip("."), logits=(Project(head),))


def _runs_on_text_alone(model: nn.Module) -> bool:
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _path(model: nn.Module, is_it: Any) -> str | None:
    return next((path for path, module in model.named_modules() if is_it(module)), None)

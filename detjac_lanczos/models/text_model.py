"""What of a transformers model deals with text: its configuration, those of its parts, and its table of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models.adapters import without_adapters


def text_config_of(model: Any) -> Any:
    """Return the configuration of a model's text decoder; in most models the whole one.

    Raises
    ------
    UnsupportedModelError
        If it holds several, as where an encoder reads text and another decoder writes.
    """
    try:
        return model.config.get_text_config()
    except ValueError as error:
        kind = type(without_adapters(model)).__name__
        raise UnsupportedModelError(
            f"{kind} ({model.config.model_type}) is made of several text models, and one decoder alone is served"
        ) from error


def configurations_of(model: Any) -> list[Any]:
    """Return every configuration that the modules of a model read, each once.

    Mostly that is the model's own; a part that was deep-copied into its place, by hand or by an adapter, has another.
    """
    from transformers import PretrainedConfig

    held = [model.config, text_config_of(model), *(vars(module).get("config") for module in model.modules())]
    return list({id(config): config for config in held if isinstance(config, PretrainedConfig)}.values())


def token_table_of(model: Any) -> Any:
    """Return the module that embeds the tokens of a model, one table with a ``weight``.

    Raises
    ------
    UnsupportedModelError
        If the model embeds them by anything else.
    """
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        table = None
    if not isinstance(getattr(table, "weight", None), Tensor):
        found = "nothing that it names" if table is None else f"a {type(table).__name__}"
        kind = type(without_adapters(model)).__name__
        raise UnsupportedModelError(f"{kind} embeds its tokens by {found}, not by one table")
    return table

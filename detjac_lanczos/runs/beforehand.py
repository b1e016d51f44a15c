"""What a model's configuration alone shows to be impossible, refused before its weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from detjac_lanczos.errors import DetjacError, InputError
from detjac_lanczos.frozen.places import Place, check_reach, source_block, target_place
from detjac_lanczos.models.cache import is_cached
from detjac_lanczos.models.catalogue import EMBEDDED
from detjac_lanczos.models.linear_modules import linear_shape
from detjac_lanczos.models.load import path_of
from detjac_lanczos.models.loaded import context_length_of
from detjac_lanczos.models.outline import outline
from detjac_lanczos.models.text_model import text_config_of, token_table_of
from detjac_lanczos.operators.detach import family_or_structure
from detjac_lanczos.runs.requests import Chosen, read_position, read_tokens_wanted
from detjac_lanczos.solvers.options import check_k


def check_on_configuration(
    model: Any,
    *,
    k: int | None,
    tokens: slice | Sequence[Chosen] | None,
    source: str | Place,
    target: str | Place,
    position: int,
) -> None:
    """Refuse a family that is not supported, places and tokens that the model cannot have, and a k above its width.

    Nothing is said of a model that is live, that would have to be unpacked, or whose configuration cannot be read:
    loading it comes first, or says why it cannot be.

    Parameters
    ----------
    model, k, tokens, source, target, position
        As in `analyze`.

    Raises
    ------
    InputError
        If something asked for does not exist.
    UnsupportedModelError
        If the family is not supported.
    """
    if not _has_configuration(model):
        return
    bare: Any
    try:
        bare, name, _ = outline(model)
    except DetjacError:
        return
    structure: Any = family_or_structure(bare)
    blocks = len(bare.get_submodule(structure.decoder).get_submodule(structure.blocks))
    first, place = source_block(source, blocks), target_place(target, blocks)
    vocabulary, output = linear_shape(bare.get_output_embeddings())
    hidden, embedding = text_config_of(bare).hidden_size, token_table_of(bare).weight.shape[1]
    check_reach(first, place, output)
    d_in = embedding if first < 0 else hidden
    d_out = {"output": output, "logits": vocabulary, "probe": 0 if place.rows is None else len(place.rows)}
    check_k([(d_out.get(place.kind, hidden), d_in)], k)
    context = context_length_of(bare)
    if context is not None:
        _check_indices(tokens, position, context, name)


def _check_indices(tokens: slice | Sequence[Chosen] | None, position: int, context: int, name: str) -> None:
    """Refuse tokens and a position that no prompt of so many tokens has, counted from either end."""
    wanted = read_tokens_wanted(tokens)
    chosen = [] if wanted is None or isinstance(wanted, slice) else wanted
    indices = [("token", token[1] if isinstance(token, tuple) else token) for token in chosen]
    for what, index in (*indices, ("position", read_position(position))):
        if not -context <= index < context:
            raise InputError(f"{what} {index} does not exist; a prompt of {name} has {context} tokens at most")


def _has_configuration(model: Any) -> bool:
    """Tell whether the configuration of a model lies in a file of its own (or on the hub)."""
    if not isinstance(model, str | os.PathLike):
        return False
    if (embedded := EMBEDDED.get(os.fspath(model))) is not None:
        return is_cached(embedded.file_name, embedded.sha256)
    return not path_of(model).is_file()

"""What a user asks `analyze` for, read, and refused where it cannot be, before the weights of a model are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from detjac_lanczos.errors import DetjacError, InputError
from detjac_lanczos.frozen.indices import whole_number
from detjac_lanczos.frozen.places import Place, check_reach, source_block, target_place
from detjac_lanczos.models.cache import is_cached
from detjac_lanczos.models.catalogue import EMBEDDED
from detjac_lanczos.models.kernel_choices import kernel_choices_fit
from detjac_lanczos.models.linear_modules import linear_shape
from detjac_lanczos.models.load import path_of
from detjac_lanczos.models.loaded import context_length_of
from detjac_lanczos.models.outline import outline
from detjac_lanczos.models.text_model import text_config_of, token_table_of
from detjac_lanczos.operators.detach import family_or_structure
from detjac_lanczos.operators.tokens import Selected, read_tokens
from detjac_lanczos.solvers.options import check_k

Chosen = int | tuple[int, int]


def read_tokens_wanted(tokens: Any) -> slice | list[Chosen] | None:
    """Return tokens as `DetachedNetwork.jacobians` takes them, none of them all tokens side by side.

    Raises
    ------
    InputError
        As `read_tokens`, or if "joint" is among them.
    """
    wanted = read_tokens(tokens)
    if wanted is None or isinstance(wanted, slice):
        return wanted
    return [_one(token) for token in wanted]


def read_position(position: Any) -> int:
    """Return the output position as an integer.

    Raises
    ------
    InputError
        If it is none.
    """
    found = whole_number(position)
    if found is None:
        raise InputError(f"position {position!r} is no index; give a whole number, -1 for the last token")
    return found


def solver_choices(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of recorded choices that the solver made.

    Raises
    ------
    InputError
        If they are not what a run records.
    """
    solver = choices.get("solver") if isinstance(choices, Mapping) else None
    if not isinstance(solver, Mapping) or not kernel_choices_fit(choices):
        raise InputError('choices are those of an earlier run: give run.record["choices"]')
    return dict(solver)


def check_on_configuration(
    model: Any,
    *,
    k: int | None,
    tokens: slice | list[Chosen] | None,
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
        As in `analyze`; the tokens and the position read.

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
    if context is None:
        return
    chosen = tokens if isinstance(tokens, list) else []
    indices = [("token", token[1] if isinstance(token, tuple) else token) for token in chosen]
    for what, index in (*indices, ("position", position)):
        if not -context <= index < context:
            raise InputError(f"{what} {index} does not exist; a prompt of {name} has {context} tokens at most")


def _one(token: Selected) -> Chosen:
    prompt, index = token if isinstance(token, tuple) else (None, token)
    if index == "joint":
        raise InputError("a job works token by token; use svd(network.jacobian('joint')) for all side by side")
    return index if prompt is None else (prompt, index)


def _has_configuration(model: Any) -> bool:
    """Tell whether the configuration of a model lies in a file of its own (or on the hub)."""
    if not isinstance(model, str | os.PathLike):
        return False
    if (embedded := EMBEDDED.get(os.fspath(model))) is not None:
        return is_cached(embedded.file_name, embedded.sha256)
    return not path_of(model).is_file()

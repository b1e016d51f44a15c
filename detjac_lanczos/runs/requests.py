"""What a user asks `analyze` for, checked before a model is loaded."""

from __future__ import annotations

from typing import Any

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.indices import whole_number
from detjac_lanczos.operators.tokens import Selected, read_tokens

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


def _one(token: Selected) -> Chosen:
    prompt, index = token if isinstance(token, tuple) else (None, token)
    if index == "joint":
        raise InputError("analyze works token by token; use svd(network.jacobian('joint')) for all side by side")
    return index if prompt is None else (prompt, index)

"""What a user asks `analyze` for, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.indices import whole_number
from detjac_lanczos.operators.network import Token

_ADVICE = "give an index, (prompt, index), a list of these, or a slice"


def read_tokens_wanted(tokens: Any) -> slice | list[Token] | None:
    """Return tokens as `DetachedNetwork.jacobians` takes them: plain integers, in pairs or alone; a slice as it is.

    Parameters
    ----------
    tokens : None, slice, integer, or iterable of integers or (prompt, token)
        Integers of numpy and tensors without axes are integers.

    Raises
    ------
    InputError
        If there is anything else in it, or a token of all tokens side by side.
    """
    if tokens is None or isinstance(tokens, slice):
        return tokens
    if (single := whole_number(tokens)) is not None:
        return [single]
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise _refused(tokens)
    return [_token(token) for token in tokens]


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


def _token(token: Any) -> Token:
    if (single := whole_number(token)) is not None:
        return single
    try:
        pair = tuple(token)
    except TypeError:
        raise _refused(token) from None
    numbers = [number for number in map(whole_number, pair) if number is not None]
    if len(pair) != 2 or len(numbers) != 2:
        raise _refused(token)
    return numbers[0], numbers[1]


def _refused(token: Any) -> InputError:
    if token == "joint" or (isinstance(token, tuple) and "joint" in token):
        return InputError("analyze works token by token; use svd(network.jacobian('joint')) for all side by side")
    return InputError(f"{token!r} selects no token; {_ADVICE}")

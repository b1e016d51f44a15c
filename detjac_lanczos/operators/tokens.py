"""Which tokens are asked for: an index, (prompt, index), a list of these, or a slice; "joint" in place of an index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, SupportsIndex

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.indices import whole_number

Token = SupportsIndex | tuple[SupportsIndex, SupportsIndex]
Single = Token | tuple[SupportsIndex, SupportsIndex | str] | str
Selected = int | Literal["joint"] | tuple[int, int | Literal["joint"]]


def read_tokens(tokens: Any) -> slice | list[Selected] | None:
    """Return what is selected in plain integers: a tuple is one (prompt, index), any other iterable a list.

    Parameters
    ----------
    tokens : None, slice, index, (prompt, index), or iterable of indices and pairs
        Integers of numpy and tensors without axes are integers; the pairs of a list may be lists themselves.

    Returns
    -------
    None, slice or list
        A list for anything but the first two.

    Raises
    ------
    InputError
        If there is anything else in it.
    """
    if tokens is None:
        return None
    if isinstance(tokens, slice):
        ends = (tokens.start, tokens.stop, tokens.step)
        if tokens.step == 0 or any(end is not None and whole_number(end) is None for end in ends):
            raise _refused(tokens)
        return tokens
    if (single := _index(tokens)) is not None:
        return [single]
    if not isinstance(tokens, Iterable) or isinstance(tokens, str | bytes):
        raise _refused(tokens)
    if isinstance(tokens, tuple) and any(_index(item) is not None for item in tokens):
        return [_pair(tokens)]
    return [found if (found := _index(token)) is not None else _pair(token) for token in tokens]


def read_token(token: Any) -> tuple[int, int | Literal["joint"]]:
    """Return (prompt, index) of one token: a tuple is that, an index alone one of the first prompt.

    Raises
    ------
    InputError
        If it is anything else.
    """
    index = _index(token)
    if index is not None:
        return 0, index
    if not isinstance(token, tuple):
        raise _refused(token)
    return _pair(token)


def _pair(token: Any) -> tuple[int, int | Literal["joint"]]:
    try:
        items = () if isinstance(token, str | bytes) else tuple(token)
    except TypeError:
        items = ()
    if len(items) == 2:
        prompt, index = whole_number(items[0]), _index(items[1])
        if prompt is not None and index is not None:
            return prompt, index
    raise _refused(token)


def _index(value: Any) -> int | Literal["joint"] | None:
    return "joint" if isinstance(value, str) and value == "joint" else whole_number(value)


def _refused(token: Any) -> InputError:
    shown = " ".join(repr(token).split())
    return InputError(f"{shown} selects no token; give an index, (prompt, index), 'joint', a list of these, or a slice")

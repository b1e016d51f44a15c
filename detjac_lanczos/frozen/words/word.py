"""What a word of a family file can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import UnionType
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import Tensor, nn

from detjac_lanczos.errors import DetjacError, InputError, UnsupportedModelError, first_line
from detjac_lanczos.frozen.maps import Map
from detjac_lanczos.frozen.sizes import BlockShape
from detjac_lanczos.frozen.tape import Tape

Freeze = Literal["gate", "up", "half"]
Coefficients = Mapping[str, Tensor]


def require_freeze(freeze: object) -> None:
    """Raise :class:`InputError` for what is no way to freeze a gated product."""
    if freeze not in get_args(Freeze):
        raise InputError(f"freeze must be 'gate', 'up' or 'half', not {freeze!r}")


@runtime_checkable
class Word(Protocol):
    """One entry of a branch."""

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Set hooks on a block of the structural copy that record what is frozen here."""

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Return what is frozen here, from the shapes of the modules alone."""

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the primitive maps, from the caller's own weights and the recorded coefficients."""


def require_all(kind: type | UnionType, values: object, what: str) -> None:
    """Check that a part of a declaration is a tuple (or list) of a kind.

    Raises
    ------
    InputError
        If it is not, such as a single one that lacks its comma; ``what`` says what it should be.
    """
    if not isinstance(values, tuple | list):
        raise InputError(f"{what}, not a {type(values).__name__}; one alone has a comma after it")
    for value in values:
        if not isinstance(value, kind) or isinstance(value, type):
            raise InputError(f"{what}; a {type(value).__name__} is among them")


def as_written(part: Any) -> str:
    """Return a word, or words, as a family file has them: names, and the paths they are given."""
    if isinstance(part, str):
        return repr(part)
    if isinstance(part, tuple | list):
        return f"({', '.join(map(as_written, part))})"
    paths = (value for value in vars(part).values() if isinstance(value, str | tuple | list) and value)
    return f"{type(part).__name__}({', '.join(map(as_written, paths))})"


def reading(word: Word, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator of a word's hooks, after which what goes wrong in them names the word.

    Raises
    ------
    UnsupportedModelError
        If a hook finds something else than the word takes for granted.
    """

    def named(hook: Callable[..., None]) -> Callable[..., None]:
        @wraps(hook)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                hook(*args, **kwargs)
            except (DetjacError, NotImplementedError):
                raise
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                reason, where = first_line(error), name.rstrip(".")
                raise UnsupportedModelError(f"{as_written(word)} cannot be read in {where} ({reason})") from error

        return run

    return named

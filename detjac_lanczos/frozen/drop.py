"""Changed coefficients: given ones, or zeros where an attention head, a routed expert or a whole branch was."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.indices import whole_number
from detjac_lanczos.frozen.places import Place, attention, mlp

_NAMED = 4
_NEVER_ZERO = (".rstd", ".positions", ".input")
_SWITCH = re.compile(r"\.mixing\.\d+(\.query_scale)?$")
"""Attention weights, or what each row of those that are made again is multiplied by: heads lie along the first axis."""


@dataclass(frozen=True)
class Head:
    """An attention head, for `DetachedNetwork.replace`.

    Attributes
    ----------
    layer : int
        Block, from 0, or negative from the end.
    head : int
        Within the block, likewise; whether there is one shows in `replace`.
    """

    layer: int
    head: int

    def __repr__(self) -> str:
        """Return it as a user types it."""
        return f"head({self.layer}, {self.head})"


@dataclass(frozen=True)
class Expert:
    """A routed expert, for `DetachedNetwork.replace`.

    Attributes
    ----------
    layer : int
        Block, from 0, or negative from the end.
    expert : int
        From 0 within the block; `replace` takes those alone that tokens of the prompt go to.
    """

    layer: int
    expert: int

    def __repr__(self) -> str:
        """Return it as a user types it."""
        return f"expert({self.layer}, {self.expert})"


head, expert = Head, Expert  # as a user types them, beside layer(l), attention(l) and mlp(l)
_KINDS: dict[str, Callable[..., Head | Expert | Place]] = {
    "head": head,
    "expert": expert,
    "attention": attention,
    "mlp": mlp,
}


def part_named(name: str) -> Head | Expert | Place:
    """Return what `switch_off` gave a short name to, such as "head.3.1".

    Raises
    ------
    InputError
        If that is no such name.
    """
    kind, *numbers = name.split(".")
    try:
        return _KINDS[kind](*map(int, numbers))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{name!r} names nothing that can be switched off") from None


def named_parts(parts: Sequence[str]) -> str:
    """Return parts by their names, in a few words: the first, and how many more."""
    more = len(parts) - _NAMED
    return ", ".join(parts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def replaced(coefficients: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return coefficients with given ones in place of those of the same names.

    Raises
    ------
    InputError
        If there is none of a name, it has another shape, holds a NaN or an infinity (in the precision of the
        coefficient), or folding moved it elsewhere.
    """
    changed = dict(coefficients)
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise InputError(f"cannot replace {name} by a {type(value).__name__}; give a tensor of its shape")
        if name not in changed or changed[name].shape != value.shape:
            have = tuple(changed[name].shape) if name in changed else "no such coefficient"
            raise InputError(f"cannot replace {name} by a tensor of shape {tuple(value.shape)}: {have}")
        if name.startswith("blocks.") and name.endswith((".rstd", ".weight", ".positions")):
            raise InputError(f"cannot replace {name}: folding moved it into a gate or mixing; replace that instead")
        copied = value.detach().to(changed[name], copy=True)
        if not bool(torch.isfinite(copied).all()):
            raise InputError(f"cannot replace {name} by values with a NaN or an infinity in {copied.dtype}")
        changed[name] = copied
    return changed


def switch_off(coefficients: dict[str, Tensor], item: Any, blocks: int) -> str:
    """Put copies of the coefficients in place that are zero where a head, an expert or a branch was.

    Returns
    -------
    str
        Its short name: "head.3.1", "expert.2.7", "mlp.5".

    Raises
    ------
    InputError
        If there is no such head or branch, or no token goes to such an expert.
    """
    match item:
        case Head():
            layer, index = _checked(item, blocks, item.layer, item.head)
            found = _mixing(coefficients, layer)
            heads = len(next(iter(found.values())))
            if not -heads <= index < heads:
                raise InputError(f"block {layer} has heads 0..{heads - 1}, not {index}")
            for name, value in found.items():
                coefficients[name] = value.index_fill(0, torch.tensor([index % heads], device=value.device), 0)
            return f"head.{layer}.{index % heads}"
        case Expert():
            layer, index = _checked(item, blocks, item.layer, item.expert)
            found = _of_block(coefficients, layer, f".experts.{index}.")
            if not found:
                raise InputError(_not_in_use(coefficients, layer, index))
            _zero(coefficients, found)
            return f"expert.{layer}.{index}"
        case Place(kind="attention"):
            layer, _ = _checked(item, blocks, item.index)
            _zero(coefficients, _mixing(coefficients, layer))
            return f"attention.{layer}"
        case Place(kind="mlp"):
            layer, _ = _checked(item, blocks, item.index)
            found = _of_block(coefficients, layer, "")
            _zero(coefficients, {name: value for name, value in found.items() if ".mixing." not in name})
            return f"mlp.{layer}"
    raise _cannot(item, blocks)


def _of_block(coefficients: Mapping[str, Tensor], layer: int, part: str) -> dict[str, Tensor]:
    """Return the coefficients of a block whose names hold ``part``."""
    return {n: value for n, value in coefficients.items() if n.startswith(f"blocks.{layer}.") and part in n}


def _not_in_use(coefficients: Mapping[str, Tensor], layer: int, expert: int) -> str:
    """Say why an expert has no coefficients, and which of its block have some."""
    names = _of_block(coefficients, layer, ".experts.")
    used = sorted({int(name.partition(".experts.")[2].partition(".")[0]) for name in names})
    if not used:
        return f"block {layer} has no routed experts"
    return f"no token of this prompt goes to expert {expert} of block {layer}; they go to {', '.join(map(str, used))}"


def _mixing(coefficients: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    found = _of_block(coefficients, layer, ".mixing.")
    return {name: value for name, value in found.items() if _SWITCH.search(name)}


def _zero(coefficients: dict[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        if not name.endswith(_NEVER_ZERO):
            coefficients[name] = torch.zeros_like(value)


def _checked(item: Any, blocks: int, layer: Any, index: Any = 0) -> tuple[int, int]:
    """Return the block, counted from 0, and the number inside it as it is; refuse what is none."""
    block, inside = whole_number(layer), whole_number(index)
    if block is None or inside is None or not -blocks <= block < blocks:
        raise _cannot(item, blocks)
    return block % blocks, inside


def _cannot(item: Any, blocks: int) -> InputError:
    return InputError(
        f"cannot drop {item!r}; drop takes head(l, h), expert(l, e), attention(l) and mlp(l) "
        f"with l in 0..{blocks - 1}, or negative from the end"
    )

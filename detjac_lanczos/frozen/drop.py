"""Switching off: an attention head, a whole branch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.places import Place


@dataclass(frozen=True)
class Head:
    """Attention head ``head`` of block ``layer``."""

    layer: int
    head: int


def head(layer: int, head: int) -> Head:
    """Name an attention head, for `FrozenNetwork.replace`."""
    return Head(layer, head)


def switch_off(coefficients: dict[str, Tensor], item: Head | Place, blocks: int) -> None:
    """Put copies of the coefficients in place that are zero where a head or a branch was.

    Raises
    ------
    InputError
        If there is no such head or branch.
    """
    layer = item.layer if isinstance(item, Head) else item.index
    kind = "attention" if isinstance(item, Head) else item.kind
    if layer is None or kind not in ("attention", "mlp") or not 0 <= layer < blocks:
        raise InputError(
            f"cannot drop {item}; drop takes head(l, h), attention(l) and mlp(l) with l in 0..{blocks - 1}"
        )
    for name in [name for name in coefficients if name.startswith(f"blocks.{layer}.")]:
        mixing = ".mixing." in name
        if mixing != (kind == "attention") or name.endswith((".rstd", ".positions", ".weight")):
            continue
        value = coefficients[name].clone()
        if not isinstance(item, Head):
            value.zero_()
        elif 0 <= item.head < len(value):
            value[item.head] = 0
        else:
            raise InputError(f"block {layer} has heads 0..{len(value) - 1}, not {item.head}")
        coefficients[name] = value

"""What a word of a family file can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.maps import Map
from detjac_lanczos.frozen.sizes import BlockShape

Freeze = Literal["gate", "up", "half"]
Kind = Literal["mixing", "gates"]
Way = Literal["keep", "offload", "rebuild"]
Coefficients = Mapping[str, Tensor]


def require_freeze(freeze: object) -> None:
    """Raise :class:`InputError` for what is no way to freeze a gated product."""
    if freeze not in get_args(Freeze):
        raise InputError(f"freeze must be 'gate', 'up' or 'half', not {freeze!r}")


class Record(Protocol):
    """Where a word puts what it observes."""

    @property
    def start(self) -> int:
        """First position of the prompt that is running, counted over all prompts."""

    @property
    def prompt(self) -> int:
        """Index of the prompt that is running."""

    def way(self, kind: Kind, name: str) -> Way:
        """Return what is planned for coefficients of a kind, by the name of the first of them."""

    def __call__(self, name: str, value: Tensor, kind: Kind | None = None, *, as_is: bool = False) -> None:
        """Keep a frozen factor, (positions, ...), in float32 at least; a second one of that name is the same again."""

    def alone(self, name: str, value: Tensor) -> None:
        """Keep a tensor of this prompt alone, as it is; the prompt is part of its name."""

    def room(self, name: str, kind: Kind, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return zeros to be filled with a coefficient of this prompt alone, where its kind is planned to lie."""


class Word(Protocol):
    """One entry of a branch."""

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Set hooks on a block of the structural copy that record what is frozen here."""

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Return what is frozen here, from the shapes of the modules alone."""

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the primitive maps, from the caller's own weights and the recorded coefficients."""

"""What a word of a family file can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor, nn

from detjac_lanczos.frozen.maps import Map

Freeze = Literal["gate", "up", "half"]
Coefficients = Mapping[str, Tensor]


class Record(Protocol):
    """Where a word puts what it observes."""

    @property
    def start(self) -> int:
        """First position of the prompt that is running, counted over all prompts."""

    def __call__(self, name: str, value: Tensor) -> None:
        """Keep a frozen factor, (positions, ...), in float32 at least; a second one of that name is the same again."""


class Word(Protocol):
    """One entry of a branch."""

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Set hooks on a block of the structural copy that record what is frozen here."""

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the primitive maps, from the caller's own weights and the recorded coefficients."""

"""What was decided by timing, as data: the solver's widths and methods, and which GEMM served which shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detjac_kernels import roads


def recorded_choices(solver: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything decided by timing so far, to be replayed."""
    return {"solver": dict(solver), "gemm": roads.choices()}


def replay_choices(choices: Mapping[str, Any] | None) -> None:
    """Put recorded GEMM choices in force, so that repeated work multiplies as the first did."""
    if choices is not None:
        roads.replay(choices.get("gemm", {}))

"""What was decided by timing, as data: the solver's widths and methods, and which GEMM served which shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detjac_lanczos.models.gemm_choices import gemm_choices, replay_gemm_choices


def recorded_choices(solver: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything decided by timing so far, to be replayed."""
    return {"solver": dict(solver), "gemm": gemm_choices()}


def replay_choices(choices: Mapping[str, Any] | None) -> None:
    """Put recorded GEMM choices in force, so that repeated work multiplies as the first did."""
    if choices is not None:
        replay_gemm_choices(choices.get("gemm", {}))

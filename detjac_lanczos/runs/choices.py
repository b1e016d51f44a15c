"""What was decided by timing, as data: the solver's widths and methods, and which kernel served which shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detjac_lanczos.errors import InputError
from detjac_lanczos.models.kernel_choices import kernel_choices, kernel_choices_fit


def recorded_choices(solver: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything decided by timing so far, to be replayed."""
    return {"solver": dict(solver), **kernel_choices()}


def solver_choices(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of recorded choices that the solver made.

    Raises
    ------
    InputError
        If they are not what a run records.
    """
    solver = choices.get("solver") if isinstance(choices, Mapping) else None
    if not isinstance(solver, Mapping) or not kernel_choices_fit(choices):
        raise InputError('choices are those of an earlier run: give run.record["choices"]')
    return dict(solver)

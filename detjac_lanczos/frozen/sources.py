"""What the maps of a chain hold, and what of it has to come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.frozen.maps import Gate, Linear, Map, Mix, Nested, steps_in
from detjac_lanczos.frozen.offloaded_factor import OffloadedFactor
from detjac_lanczos.frozen.rebuilt import RebuiltMixing, RebuiltRows
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.streaming import source_of


def frozen_tensors(chain: Sequence[Map]) -> Iterator[Tensor]:
    """Yield the attention weights and gates of a chain that are stored."""
    for factor in _factors(chain):
        if isinstance(factor, OffloadedFactor):
            yield factor.stored
        elif isinstance(factor, Tensor):
            yield factor


def _factors(chain: Sequence[Map]) -> Iterator[Tensor | RebuiltMixing | RebuiltRows | OffloadedFactor]:
    for step in steps_in(chain):
        if isinstance(step, Mix):
            yield from step.probabilities
        elif isinstance(step, Gate):
            yield step.g


def sources_of(chain: Sequence[Map]) -> Iterator[Held[Any, Any]]:
    """Yield what a chain needs from elsewhere: frozen factors, its weights, and those that its gates are made of."""
    for factor in _factors(chain):
        if isinstance(factor, OffloadedFactor):
            yield factor
        elif isinstance(factor, RebuiltRows):
            yield from factor.sources
    for step in steps_in(chain):
        if isinstance(step, Linear) and (source := source_of(step.weight)) is not None:
            yield source


def bring(chain: Sequence[Map], device: torch.device) -> tuple[Map, ...]:
    """Return a chain whose stored factors come to a device where they lie elsewhere; the others as they are."""

    def here(factor: Any) -> Any:
        return OffloadedFactor(factor, device) if isinstance(factor, Tensor) and factor.device != device else factor

    brought: list[Map] = []
    for step in chain:
        match step:
            case Nested():
                brought.append(step.with_chains([bring(part, device) for part in step.chains]))
            case Gate():
                brought.append(Gate(here(step.g)))
            case Mix():
                brought.append(replace(step, probabilities=tuple(map(here, step.probabilities))))
            case _:
                brought.append(step)
    return tuple(brought)

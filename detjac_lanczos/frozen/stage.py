"""Steps of the residual stream: branches that read it, and the sum that goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from detjac_lanczos.frozen.mapped import is_mapped
from detjac_lanczos.frozen.maps import Map, device_of, mixes
from detjac_lanczos.frozen.sources import bring, frozen_tensors


@dataclass(frozen=True)
class Branch:
    """A named chain of maps that reads the residual stream."""

    name: str
    chain: tuple[Map, ...]


@dataclass(frozen=True)
class Stage:
    """Branches that read the same stream; their sum is added to it (or replaces it, without ``residual``)."""

    branches: tuple[Branch, ...]
    residual: bool = True
    block: int = -1

    @cached_property
    def device(self) -> torch.device | None:
        """Where its tensors lie; None where it has none."""
        return next((device for branch in self.branches if (device := device_of(branch.chain)) is not None), None)

    def brought(self) -> Stage:
        """Return the stage with frozen factors that lie elsewhere coming to where its weights are."""
        if self.device is None:
            return self
        branches = (replace(branch, chain=bring(branch.chain, self.device)) for branch in self.branches)
        return replace(self, branches=tuple(branches))

    @cached_property
    def mapped(self) -> tuple[Tensor, ...]:
        """Frozen factors that lie in files."""
        return tuple(t for branch in self.branches for t in frozen_tensors(branch.chain) if is_mapped(t))

    @property
    def mixes(self) -> bool:
        """Whether rows of different positions meet here."""
        return any(mixes(branch.chain) for branch in self.branches)

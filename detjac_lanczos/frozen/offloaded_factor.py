"""Frozen factors in host memory, for a device apart: copied there while the block before is at work."""

from __future__ import annotations

import torch
from torch import Tensor

from detjac_lanczos.models.held import Held
from detjac_lanczos.models.side_stream import beside, used_here


class OffloadedFactor(Held[Tensor, Tensor]):
    """A frozen factor that is stored in one place and used in another.

    Parameters
    ----------
    stored : Tensor
        Attention weights (heads, n, n), or gates (N, f), in the memory of the host; for CUDA they are pinned here where
        they are not yet.
    device : torch.device
    """

    def __init__(self, stored: Tensor, device: torch.device) -> None:
        super().__init__(device)
        self.stored = stored if self.device.type != "cuda" or stored.is_pinned() else stored.pin_memory()

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """Its precision."""
        return self.stored.dtype

    def mul_(self, factor: Tensor) -> None:
        """Multiply it in place, where it is stored."""
        self.stored.mul_(factor.to(self.stored.device))

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return some rows, on the device."""
        with self.held() as here:
            return here.index_select(dim, index)

    def _read(self) -> Tensor:
        return self.stored

    def _placed(self, values: Tensor) -> Tensor:
        with beside(self.device):
            here = values.to(self.device, non_blocking=True)
        used_here([here])
        return here

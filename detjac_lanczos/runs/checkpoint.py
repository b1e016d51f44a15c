"""What a run keeps beside the journal of its search: which kernels were chosen by timing, to go on with them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from detjac_lanczos.models.kernel_choices import kernel_choices, kernel_choices_fit, kernel_choices_in_force
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs.folder import write_whole
from detjac_lanczos.solvers.journal import checkpoint_folder

_CHOICES = "choices.json"


class Checkpoint:
    """A folder for a search that may be cut off.

    Parameters
    ----------
    folder : path
        What `svd_batch` takes as ``checkpoint``.

    Raises
    ------
    InputError
        If it names no folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = checkpoint_folder(folder)
        self._place = self.folder / _CHOICES
        self._written: dict[str, dict[str, str]] = {}

    def choices_in_force(self) -> AbstractContextManager[None]:
        """Put the choices of an earlier process in force for a while; where none can be read, kernels are timed."""
        try:
            written = json.loads(self._place.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            written = {}
        return kernel_choices_in_force(written if kernel_choices_fit(written) else {})

    def note(self) -> None:
        """Write the choices of this process down, where there are new ones."""
        if (made := kernel_choices()) != self._written:
            write_whole(self._place, json.dumps(made))
            self._written = made


class NotedBatch(JacobianBatch):
    """Jacobians whose kernel choices are written down before a pass is: a pass read back has them beside it.

    Parameters
    ----------
    batch : JacobianBatch
    checkpoint : Checkpoint
    """

    def __init__(self, batch: JacobianBatch, checkpoint: Checkpoint) -> None:
        super().__init__(batch.operators)
        self._checkpoint = checkpoint

    def matmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """As `JacobianBatch.matmat`."""
        products = super().matmat(blocks)
        self._checkpoint.note()
        return products

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """As `JacobianBatch.rmatmat`."""
        products = super().rmatmat(blocks)
        self._checkpoint.note()
        return products

    def rmatmat_shared(self, Y: Tensor) -> list[Tensor]:
        """As `JacobianBatch.rmatmat_shared`."""
        products = super().rmatmat_shared(Y)
        self._checkpoint.note()
        return products

    def matmat_sum(self, blocks: Sequence[tuple[int, Tensor]]) -> Tensor:
        """As `JacobianBatch.matmat_sum`."""
        product = super().matmat_sum(blocks)
        self._checkpoint.note()
        return product

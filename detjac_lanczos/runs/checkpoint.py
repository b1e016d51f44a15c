"""What a run keeps beside the journal of its search: which kernels were chosen by timing, to go on with them."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from detjac_lanczos.models.kernel_choices import kernel_choices, replay_kernel_choices
from detjac_lanczos.runs.folder import write_whole
from detjac_lanczos.solvers.journal import checkpoint_folder
from detjac_lanczos.solvers.options import Callback, Progress

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

    def replay(self) -> None:
        """Put the choices of an earlier process in force; where none can be read, kernels are timed anew."""
        with suppress(OSError, ValueError, TypeError, AttributeError, RuntimeError):
            replay_kernel_choices(json.loads(self._place.read_text("utf-8")))

    def noting(self, callback: Callback | None) -> Callback:
        """Return a callback that writes new choices down after every pass, then calls the given one."""

        def noted(progress: Progress) -> None:
            if (made := kernel_choices()) != self._written:
                write_whole(self._place, json.dumps(made))
                self._written = made
            if callback is not None:
                callback(progress)

        return noted

"""How a callback learns of every pass of a solve, whatever the method."""

from collections.abc import Sequence

import numpy as np

from detjac_lanczos.solvers.options import Callback, Progress
from detjac_lanczos.solvers.result import SVDResult


class Reporter:
    """Calls a callback once for each pass, as soon as what the pass showed is known.

    That is when the next one begins, or when all results are there. Passes are counted where they are made; what is
    known of the operators comes from the methods.

    Parameters
    ----------
    callback : callable or None
    operators : int

    Attributes
    ----------
    finished : int
        Operators that are done.
    """

    def __init__(self, callback: Callback | None, operators: int) -> None:
        self.callback = callback
        self.finished = 0
        self._told = 0
        self._values = [np.empty(0)] * operators
        self._residuals = [np.empty(0)] * operators

    def take(self, index: int, values: np.ndarray, residuals: np.ndarray, scale: float = 1.0) -> None:
        """Take an operator's values ``(k,)`` so far, times ``scale``, and their relative residuals, ``(k,)`` or none.

        A value above the largest number is told as infinite.
        """
        with np.errstate(over="ignore"):
            self._values[index], self._residuals[index] = values / scale, residuals

    def take_results(self, results: Sequence[SVDResult]) -> None:
        """Take what was found, of all operators."""
        self.finished = len(results)
        for index, result in enumerate(results):
            if self.callback is not None and bool(result.residuals.isfinite().all()):
                self.take(index, result.S.cpu().numpy(), result.relative.amax(dim=1).cpu().numpy())

    def tell(self, passes: int, products: int, row_sweeps: float) -> None:
        """Call the callback, where there is one, unless it has seen so many passes; its arrays are its own."""
        if self.callback is None or passes == self._told:
            return
        self._told = passes
        self.callback(
            Progress(
                passes,
                products,
                row_sweeps,
                self.finished,
                len(self._values),
                values=[values.copy() for values in self._values],
                residuals=[residuals.copy() for residuals in self._residuals],
            )
        )

"""When a search that makes no more progress is given up."""

import math

_STALLED_AFTER = 8
"""Passes without progress. Chosen: four each way."""

_PROGRESS = 0.1
"""Fall of the sum of logarithms that is progress. Chosen: one residual by a tenth, or all of them together."""


class Patience:
    """Waits some passes for residuals to move: their level is the sum of their logarithms."""

    def __init__(self) -> None:
        self._best = math.inf
        self._since_best = 0

    def ends(self, level: float) -> bool:
        """Take the level after one more pass; True where it has not moved for eight."""
        if level < self._best - _PROGRESS:
            self._best, self._since_best = level, 0
        else:
            self._since_best += 1
        return self._since_best >= _STALLED_AFTER

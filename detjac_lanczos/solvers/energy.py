"""How much of ‖A‖_F² the leading triplets hold, known while the search goes on."""

import numpy as np
from torch import Tensor

from detjac_lanczos.solvers.basis import random_rows
from detjac_lanczos.solvers.options import ENERGY_PROBES
from detjac_lanczos.solvers.streams import Stream
from detjac_lanczos.solvers.trace_interval import rest_interval

CONFIDENCE = 0.95

_OF_EACH_PASS = 0.975
"""Confidence of the interval of one pass where what is left is about as large in all directions.

A search stops by the same cotangents that state its interval, and so chooses among those of all its passes. In small
spaces of equal values, where intervals are as narrow as they may be, 7.7 % of 1,000 intervals of 95 % missed the share
(orthogonal 12 × 12, half of the energy); of 97.5 %, 3.8 % do, and in spaces of 10 to 30, at 0.4 to 0.7 of the energy,
up to 4.4 % of 250 each. Spectra that fall make intervals wider than need be: of 95 %, 0 to 0.5 % miss.
"""

_ALIKE = 0.5
"""Of σ_1² in every direction left: where more is left, values are taken for equal. Chosen."""


class EnergySketch:
    """Random cotangents ω and their products Aᵀ ω: an estimate of what any left basis leaves, at no further product.

    ‖A‖_F² = ‖Uᵀ A‖_F² + ‖(I - U Uᵀ) A‖_F². The first term is exact, from stored products; ‖Aᵀ (I - U Uᵀ) ω‖² is an
    unbiased estimate of the second (Girard 1989; Hutchinson 1989). Its interval assumes that σ_1 was not missed.

    Attributes
    ----------
    rows : Tensor, shape (ENERGY_PROBES, d_out)
        Standard normal, from a stream of their own.
    """

    def __init__(self, model: Tensor, seed: int) -> None:
        self.rows = random_rows(ENERGY_PROBES, model, Stream.ENERGY.generator(seed))
        self._products: Tensor | None = None

    def absorb(self, products: Tensor) -> None:
        """Take Aᵀ ω ``(ENERGY_PROBES, d_in)``."""
        self._products = products

    def total(
        self, left: Tensor, left_products: Tensor, largest: float, confidence: float | None = None
    ) -> tuple[float, float]:
        """Return the interval of ‖A‖_F², in the units of the products squared.

        Parameters
        ----------
        left, left_products : Tensor, shape (m, d_out) and (m, d_in)
            Orthonormal u and their Aᵀ u.
        largest : float
            A bound of σ_1.
        confidence : float, optional
            By default 95 %, or what each pass of a search needs for that.
        """
        assert self._products is not None
        known = float(left_products.double().square().sum())
        rest = self._products - (self.rows @ left.T) @ left_products
        mean = float(rest.double().square().sum()) / ENERGY_PROBES
        if confidence is None:
            room = min(left.shape[1], left_products.shape[1]) - len(left)
            confidence = _OF_EACH_PASS if mean > _ALIKE * largest**2 * room else CONFIDENCE
        low, high = rest_interval(mean, ENERGY_PROBES, largest**2, confidence)
        return known + low, known + high


def count_for(energy: float, values: np.ndarray, total: float) -> int:
    """Return how many leading values hold a share of ``total``; one more than there are where all do not."""
    return int(np.searchsorted(np.cumsum(values**2), energy * total) + 1)

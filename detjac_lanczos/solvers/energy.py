"""How much of ‖A‖_F² the leading triplets hold, known while the search goes on."""

import numpy as np
from torch import Tensor

from detjac_lanczos.solvers.basis import random_rows
from detjac_lanczos.solvers.options import ENERGY_PROBES
from detjac_lanczos.solvers.streams import Stream
from detjac_lanczos.solvers.trace_interval import rest_interval

CONFIDENCE = 0.95


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
        self, left: Tensor, left_products: Tensor, largest: float, confidence: float = CONFIDENCE
    ) -> tuple[float, float]:
        """Return the interval of ‖A‖_F², in the units of the products squared.

        Parameters
        ----------
        left, left_products : Tensor, shape (m, d_out) and (m, d_in)
            Orthonormal u and their Aᵀ u.
        largest : float
            A bound of σ_1.
        confidence : float
        """
        assert self._products is not None
        known = float(left_products.double().square().sum())
        rest = self._products - (self.rows @ left.T) @ left_products
        mean = float(rest.double().square().sum()) / ENERGY_PROBES
        low, high = rest_interval(mean, ENERGY_PROBES, largest**2, confidence)
        return known + low, known + high


def count_for(energy: float, values: np.ndarray, total: float) -> int:
    """Return how many leading values hold a share of ``total``; one more than there are where all do not."""
    return int(np.searchsorted(np.cumsum(values**2), energy * total) + 1)

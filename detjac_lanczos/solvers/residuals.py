"""What residuals mean, for all methods alike: how large they are, and which belong to zeros of the operator."""

from typing import TypeVar

import numpy as np
from torch import Tensor, where

from detjac_lanczos.solvers.rounding import tells_zeros

Numbers = TypeVar("Numbers", np.ndarray, Tensor)


def relative_residuals(residuals: Tensor, values: Tensor, floor: float, first: float) -> Tensor:
    """Return residuals by their σ_j, and by σ_1 where σ_j is under the floor; as they are where that is 0.

    Parameters
    ----------
    residuals : Tensor, shape (k,) or (k, 2)
        Absolute; NaN, as the values, where nothing was found.
    values : Tensor, shape (k,)
    floor : float
        What rounding of the operator alone can do.
    first : float
        σ_1.
    """
    sigma = values.to(residuals.dtype)
    divisors = where(sigma > floor, sigma, first or 1.0)
    return residuals / (divisors if residuals.ndim == 1 else divisors[:, None])


def are_zeros(values: Numbers, residuals: Numbers, floor: float, tol: float, first: float) -> Numbers:
    """Return which triplets, of a spectrum known as a whole, are those of zeros: none where the floor tells no zeros.

    Parameters
    ----------
    values, residuals : ndarray or Tensor, shape (k,)
        Residuals are absolute, the larger of either side.
    floor : float
        What rounding of the operator alone can do.
    tol : float
    first : float
        σ_1.
    """
    return (values <= floor) & (residuals <= floor) & tells_zeros(floor, tol, first)

"""Where a search goes next: the directions in which residuals of Ritz triplets are open."""

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import dominant_rows, like
from detjac_lanczos.solvers.factorisation import RitzTriplets

_NEXT = 0.1
"""Relative residual above which Ritz triplets beyond those wanted share in a block that has room for them. At width 8
and k = 8 it saves one pass in 28 for one column in 40 more on the Jacobians of both embedded models; 0.01 saves two for
one in eight."""


def open_directions(
    ritz: RitzTriplets, residuals: Tensor, allowed: np.ndarray, wanted: int, width: int
) -> tuple[Tensor, int]:
    """Return orthonormal directions of the residuals of open triplets, and how many triplets are open on any side.

    Parameters
    ----------
    ritz : RitzTriplets
        Those wanted and some that come next.
    residuals : Tensor, shape (r, d)
        Of all of them, on the side that the block is to join.
    allowed : ndarray, shape (r,)
        Residuals with which a triplet is not open.
    wanted : int
        Triplets that must converge.
    width : int
        The most directions to return.
    """
    is_open = ritz.norms.max(axis=1)[:wanted] > allowed[:wanted]
    next_ones = is_open.any() / np.maximum(allowed, _NEXT * ritz.values)[wanted:]
    weights = np.r_[is_open / allowed[:wanted], next_ones]
    taken = np.flatnonzero(weights)
    weighted = like(weights[taken], residuals)[:, None] * residuals[torch.from_numpy(taken).to(residuals.device)]
    return dominant_rows(weighted, width, 1.0), int(is_open.sum())

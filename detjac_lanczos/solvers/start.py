"""The first block of a search: random cotangents, or right vectors of a neighbouring problem."""

import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import complete_block, dominant_rows, orthonormal_rows, random_rows
from detjac_lanczos.solvers.rounding import deflation_threshold, epsilon, safe_scale


def random_block(basis: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return orthonormal random rows in the space, dtype and device of an empty basis ``(0, d)``, d at most."""
    return orthonormal_rows(random_rows(min(width, basis.shape[1]), basis, generator))


def given_block(start: Tensor, basis: Tensor, width: int, most: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Return an orthonormal block that begins with given vectors and holds a random row at least, and its own width.

    Parameters
    ----------
    start : Tensor, shape (d, w)
        Of any length, rank and precision.
    basis : Tensor, shape (0, d)
    width : int
        Rows wanted, where so many fit and the vectors are not more.
    most : int
        Rows that may be sent.
    generator : torch.Generator

    Returns
    -------
    block : Tensor, shape (b, d)
    begun_with : int
        Independent vectors given, and one.
    """
    given = start.T.to(device=basis.device, dtype=torch.float64)
    given = (given * safe_scale(given)).to(basis.dtype)
    length = float(torch.linalg.matrix_norm(given))
    block, _ = dominant_rows(given, most - 1, deflation_threshold(epsilon(basis.dtype), length))
    begun_with = block.shape[0] + 1
    return complete_block(block, basis, min(max(width, begun_with), most), generator), begun_with

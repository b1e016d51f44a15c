"""The matrices of routed experts, all in one tensor of their module: dense, or packed as they are stored."""

from __future__ import annotations

from typing import Any

from detjac_lanczos.models.mxfp4 import Mxfp4Experts
from detjac_lanczos.models.weights import AlternatingWeight, DenseWeight, Weight


def expert_weight(experts: Any, name: str, expert: int, *, transposed: bool, rows: slice = slice(None)) -> Weight:
    """Return some rows of the matrix (f, d) of one expert, in place.

    Parameters
    ----------
    experts : torch.nn.Module
    name : str
        Of the tensor that holds the matrices, such as "gate_up_proj".
    expert : int
    transposed : bool
        Whether dense ones are stored as (d, f).
    rows : slice
    """
    if isinstance(experts, Mxfp4Experts):
        return experts.weight(name, expert, rows)
    matrix = getattr(experts, name)[expert].detach()
    matrix = matrix.t() if transposed else matrix
    return AlternatingWeight(matrix, rows.start) if rows.step == 2 else DenseWeight(matrix[rows])

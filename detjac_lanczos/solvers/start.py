"""The first block of a search: random cotangents, or right vectors of a neighbouring problem."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.basis import complete_block, dominant_rows, orthonormal_rows, random_rows
from detjac_lanczos.solvers.rounding import epsilon, rounding_of, safe_scale


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
    block = dominant_rows(given, most - 1, rounding_of(epsilon(basis.dtype), length))
    begun_with = block.shape[0] + 1
    return complete_block(block, basis, min(max(width, begun_with), most), generator), begun_with


def read_start(start: Sequence[Any] | None, shapes: Sequence[tuple[int, int]], *, method: str) -> list[Tensor] | None:
    """Return the right vectors to begin with as tensors, one (d_in, w) for each operator; None where none are given.

    Parameters
    ----------
    start : sequence of Tensor or ndarray, optional
    shapes : sequence of (int, int)
    method : str
        The one asked for.

    Raises
    ------
    InputError
        They do not fit the operators, or the method.
    """
    if start is None:
        return None
    if method not in ("auto", "lanczos"):
        raise InputError(f"start begins a Lanczos search, method {method!r} makes none: choose 'lanczos', or no start")
    if not isinstance(start, Sequence | Tensor | np.ndarray):
        raise InputError(f"start is a {type(start).__name__}: give a list with one block for each operator")
    if len(start) != len(shapes):
        raise InputError(f"start holds {len(start)} blocks for {len(shapes)} operators: give one for each")
    return [
        _start_block(index, vectors, d_in) for index, (vectors, (_, d_in)) in enumerate(zip(start, shapes, strict=True))
    ]


def _start_block(index: int, vectors: Any, d_in: int) -> Tensor:
    try:
        if isinstance(vectors, list | tuple) and any(isinstance(one, np.ndarray) for one in vectors):
            raise TypeError  # of one axis more than meant, as a rule, and slow to copy
        real = isinstance(vectors, np.ndarray) and vectors.dtype.kind == "f"
        given = torch.from_numpy(vectors.astype(np.float64)) if real else vectors
        block = given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
        sound = block.shape[0] == d_in and block.ndim == 2 and block.is_floating_point()
        sound &= block.layout is torch.strided and not block.is_meta and block.dtype.itemsize >= 2
    except (TypeError, ValueError, RuntimeError, IndexError):
        raise InputError(
            f"start block {index} is a {type(vectors).__name__}: give a tensor of shape ({d_in}, w)"
        ) from None
    if not sound or not bool(block.isfinite().all()):
        raise InputError(
            f"start block {index} has shape {tuple(block.shape)} and {block.dtype} on {block.device}: give finite "
            f"right vectors of shape ({d_in}, w), in a floating point type of 16 bits or more"
        )
    return block

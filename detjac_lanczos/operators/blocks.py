"""Checks of what an operator is given: one clear line each."""

from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from detjac_lanczos.errors import OperatorError


class HasSpace(Protocol):
    """What the checks need to know of an operator."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the operator."""

    @property
    def device(self) -> torch.device:
        """Device of the operator."""


def check_block(operator: HasSpace, block: Tensor, rows: int, name: str) -> None:
    """Check that ``block`` is a (rows, b) tensor of the operator's dtype and device.

    Raises
    ------
    OperatorError
        If it is not.
    """
    if not isinstance(block, Tensor):
        raise OperatorError(
            f"{name} takes a torch tensor, not {type(block).__name__}; use aslinearoperator() for numpy"
        )
    if block.ndim != 2 or block.shape[0] != rows:
        raise OperatorError(f"{name} takes columns, shape ({rows}, b); got {tuple(block.shape)}")
    if block.dtype is not operator.dtype:
        raise OperatorError(f"{name} takes {operator.dtype}; got {block.dtype}, convert the block first")
    if block.device.type != operator.device.type:
        raise OperatorError(f"{name} works on {operator.device}; the block is on {block.device}, move it first")


def check_finite(block: Tensor, name: str) -> None:
    """Check that a block holds numbers only.

    Raises
    ------
    OperatorError
        If it holds a NaN or an infinity.
    """
    # A finite sum proves that all are finite; one that is not may have overflowed.
    if not (isfinite(float(block.detach().sum())) or torch.isfinite(block).all()):
        raise OperatorError(f"{name} was given a block with a NaN or an infinity")

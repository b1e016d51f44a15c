"""Whole numbers as users give them: Python's, numpy's, and tensors without axes; never True or False."""

from __future__ import annotations

from operator import index as as_index
from typing import Any

import numpy as np
import torch


def whole_number(value: Any) -> int | None:
    """Return the integer that a value is (numpy's and tensors without axes included), or None; True is none."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, torch.Tensor) and value.dtype is torch.bool):
        return None
    try:
        return as_index(value)
    except TypeError:
        return None

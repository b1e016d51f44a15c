"""Frozen attention mixing ``P V`` for many columns at once, and its transpose, with grouped heads."""

import torch
from torch import Tensor


def mix(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return ``P V`` for every head; heads of a group share their values.

    Parameters
    ----------
    probabilities : Tensor, shape (kv_heads, group · queries, keys)
        Attention weights, the heads of one group stacked over the query axis.
    values : Tensor, shape (kv_heads, keys, columns)

    Returns
    -------
    Tensor, shape (kv_heads, group · queries, columns)
    """
    return torch.bmm(probabilities, values)


def mix_transposed(probabilities: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``Pᵀ Y``, summed over the heads of a group.

    Parameters
    ----------
    probabilities : Tensor, shape (kv_heads, group · queries, keys)
    cotangents : Tensor, shape (kv_heads, group · queries, columns)

    Returns
    -------
    Tensor, shape (kv_heads, keys, columns)
    """
    return torch.bmm(probabilities.transpose(1, 2), cotangents)

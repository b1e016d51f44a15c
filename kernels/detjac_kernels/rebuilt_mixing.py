"""Frozen attention mixing whose weights are not stored: made again, tile by tile, from q, k and log-sum-exp.

The weight of a key that query i sees is ``exp(score − lse_i)``, with the score ``softcap(scaling · q_i · k_j)``; a sink
has its part in ``lse`` alone. Query i sees the keys ``first_i .. start + i``: causal, behind a sliding window or within
a chunk. Tiles of keys that no query of theirs sees are skipped. Scores are rounded as the pass that made ``lse`` rounds
them (to the dtype of q after the product, the scaling and the cap), weights to the dtype of q once more.
"""

from collections.abc import Iterator
from typing import Required, TypedDict

import torch
from torch import Tensor

TILE_CELLS = 1 << 20
"""Weights (heads × queries × keys) that exist at once, unless 32 queries have more of them."""


class Rebuilding(TypedDict, total=False):
    """What `mix_rebuilt` and its transpose take by name; ``scaling`` is always given."""

    scaling: Required[float]
    softcap: float | None
    key_scale: Tensor | None
    query_scale: Tensor | None
    start: int


def mix_rebuilt(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    first: Tensor,
    values: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    key_scale: Tensor | None = None,
    query_scale: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Return ``diag(query_scale) P diag(key_scale) V`` for every head; heads of a group share keys and values.

    Parameters
    ----------
    q : Tensor, shape (heads, queries, head_dim)
    k : Tensor, shape (kv_heads, keys, head_dim)
    lse : Tensor, shape (heads, queries)
        log Σ exp(score) over the keys that a query sees, and over its sink; float32 at least.
    first : Tensor, shape (queries,)
        The first key each query sees, counted from the first of ``k``; integers, negative ones count as 0.
    values : Tensor, shape (kv_heads, keys, columns)
    scaling : float
    softcap : float, optional
        c of ``c tanh(score / c)``.
    key_scale : Tensor, shape (keys,), optional
    query_scale : Tensor, shape (heads, queries), optional
    start : int
        The last key that the first query sees; the next query sees one more, and so on.

    Returns
    -------
    Tensor, shape (kv_heads, group · queries, columns), of the dtype of ``values``
    """
    kv_heads, _, columns = values.shape
    group, queries = len(q) // kv_heads, q.shape[1]
    if key_scale is not None:
        values = (values * key_scale[:, None]).to(values.dtype)
    mixed = values.new_empty(kv_heads, group, queries, columns)
    for rows, seen, weights in _tiles(q, k, lse, first, scaling, softcap, start):
        product = torch.bmm(weights.to(values.dtype), values[:, seen])
        mixed[:, :, rows] = product.unflatten(1, (group, -1))
    if query_scale is not None:
        mixed.mul_(query_scale.reshape(kv_heads, group, queries, 1))
    return mixed.view(kv_heads, group * queries, columns)


def mix_rebuilt_transposed(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    first: Tensor,
    cotangents: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    key_scale: Tensor | None = None,
    query_scale: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Return ``diag(key_scale) Pᵀ diag(query_scale) Y``, summed over the heads of a group.

    ``cotangents`` is (kv_heads, group · queries, columns); the other parameters are those of `mix_rebuilt`.

    Returns
    -------
    Tensor, shape (kv_heads, keys, columns), of the dtype of ``cotangents``
    """
    kv_heads, _, columns = cotangents.shape
    group, queries = len(q) // kv_heads, q.shape[1]
    cotangents = cotangents.view(kv_heads, group, queries, columns)
    if query_scale is not None:
        cotangents = (cotangents * query_scale.reshape(kv_heads, group, queries, 1)).to(cotangents.dtype)
    mixed = cotangents.new_zeros(kv_heads, k.shape[1], columns)
    for rows, seen, weights in _tiles(q, k, lse, first, scaling, softcap, start):
        part = cotangents[:, :, rows].flatten(1, 2)
        mixed[:, seen].baddbmm_(weights.to(part.dtype).transpose(1, 2), part)
    return mixed if key_scale is None else mixed.mul_(key_scale[:, None])


def _tiles(
    q: Tensor, k: Tensor, lse: Tensor, first: Tensor, scaling: float, softcap: float | None, start: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield queries, the keys that they see, and their weights: (kv_heads, group · queries of the tile, keys)."""
    (heads, queries, width), (kv_heads, keys, _) = q.shape, k.shape
    group = heads // kv_heads
    q, lse = q.view(kv_heads, group, queries, width), lse.view(kv_heads, group, queries, 1)
    first = first.clamp(min=0)
    height = max(32, TILE_CELLS // max(1, heads * min(keys, start + queries)))
    for begin in range(0, queries, height):
        end = min(begin + height, queries)
        low = int(first[begin:end].min())
        high = max(low, min(start + end, keys))
        scores = torch.bmm(q[:, :, begin:end].reshape(kv_heads, -1, width), k[:, low:high].transpose(1, 2))
        scores = scores.mul_(scaling).view(kv_heads, group, end - begin, high - low)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        weights = scores.to(lse.dtype).sub_(lse[:, :, begin:end]).exp_().to(q.dtype)
        _hide(weights, first[begin:end], start + begin, low)
        yield slice(begin, end), slice(low, high), weights.flatten(1, 2)


def _hide(weights: Tensor, first: Tensor, last: int, low: int) -> None:
    """Put zeros where a key is not seen: beyond ``last + i``, and before ``first_i``; keys count from ``low``."""
    rows, keys = weights.shape[-2:]
    beyond = weights[..., max(last + 1 - low, 0) :]
    if beyond.shape[-1]:
        at = torch.arange(keys - beyond.shape[-1], keys, device=weights.device) + low
        beyond.masked_fill_(at > torch.arange(last, last + rows, device=weights.device)[:, None], 0)
    before = weights[..., : max(int(first.max()) - low, 0)]
    if before.shape[-1]:
        at = torch.arange(before.shape[-1], device=weights.device) + low
        before.masked_fill_(at < first[:, None], 0)

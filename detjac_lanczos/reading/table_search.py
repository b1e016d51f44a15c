"""Exact search in a table of token vectors, streamed over its rows: the table is never copied whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 20
"""Numbers of a part of the table, or of its scores: no more than a search has held before."""


@dataclass(frozen=True)
class Found:
    """Best rows for each of K queries. ``values``, ``ids``: (top, K), best first; ``logsumexp``: (K,)."""

    values: Tensor
    ids: Tensor
    logsumexp: Tensor


@torch.no_grad()
def best_rows(
    table: Tensor, queries: Tensor, top: int, *, cosine: bool = False, temperature: Tensor | None = None
) -> Found:
    """Find the rows of a table that have the largest product (or cosine) with each query.

    Parameters
    ----------
    table : Tensor, shape (vocabulary, d)
    queries : Tensor, shape (d, K)
        The search runs in their precision, float32 at least.
    top : int
    cosine : bool
        Divide each product by the lengths of row and query; rows of zeros score 0.
    temperature : Tensor, shape (K,), optional
        ``logsumexp`` is taken over scores times this; 1 by default.

    Returns
    -------
    Found
        Where the queries lie, wherever the table does.
    """
    home, dtype = queries.device, torch.promote_types(queries.dtype, torch.float32)
    queries = queries.to(table.device, dtype)
    if cosine:
        queries = queries / _length(queries, 0)
    scale = torch.ones_like(queries[0]) if temperature is None else temperature.to(queries)

    def score(start: int, stop: int) -> Tensor:
        rows = table[start:stop].to(dtype)
        products = rows @ queries
        return products / _length(rows, 1)[:, None] if cosine else products

    rows = max(top, _CHUNK_ELEMENTS // max(1, max(queries.shape)))
    found = merge_chunks(score, table.shape[0], rows, min(top, table.shape[0]), scale)
    return Found(found.values.to(home), found.ids.to(home), found.logsumexp.to(home))


def merge_chunks(score: Callable[[int, int], Tensor], size: int, rows: int, top: int, scale: Tensor) -> Found:
    """Merge the best of each chunk. ``score(start, stop)`` gives (stop − start, K); ``scale``: (K,)."""
    values, ids, total = [], [], torch.full_like(scale, -torch.inf)
    for start in range(0, size, rows):
        scores = score(start, min(start + rows, size))
        best = scores.topk(min(top, len(scores)), dim=0)
        values.append(best.values)
        ids.append(best.indices + start)
        total = torch.logaddexp(total, torch.logsumexp(scores * scale, dim=0))
    merged = torch.cat(values).topk(top, dim=0)
    return Found(merged.values, torch.cat(ids).gather(0, merged.indices), total)


def _length(vectors: Tensor, dim: int) -> Tensor:
    length = vectors.norm(dim=dim)
    return torch.where(length > 0, length, torch.ones_like(length))

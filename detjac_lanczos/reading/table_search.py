"""Exact search in a table of token vectors, streamed over its rows: the table is never copied whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from detjac_lanczos.frozen.precision import in_own_precision

_CHUNK_ELEMENTS = 1 << 20
"""Numbers of a part of the table, or of its scores: no more than a search has held before."""

Logits = Callable[[Tensor, int, int], Tensor]
"""From scores (stop − start, K) of the rows from start to stop to the logits that rank and weigh these rows."""

Rows = tuple[Tensor, Tensor, Tensor]
"""Logits, scores and ids of some rows for each query, (rows, K) each, best first."""

Linear = Callable[[Tensor], Tensor]
"""A linear map of rows, (rows, d) to (rows, d')."""


@dataclass(frozen=True, eq=False)
class Found:
    """Best rows for each of K queries, (top, K), best first: their scores, ids, and shares of softmax over all rows."""

    scores: Tensor
    ids: Tensor
    shares: Tensor


@in_own_precision
def best_rows(
    table: Tensor,
    queries: Tensor,
    top: int,
    *,
    cosine: bool = False,
    through: Linear | None = None,
    logits: Logits | None = None,
    softcap: float | None = None,
) -> Found:
    """Find the rows of a table that have the largest product (or cosine) with each query.

    Parameters
    ----------
    table : Tensor, shape (vocabulary, d)
    queries : Tensor, shape (d, K), or (d', K) where rows go through a map
        The search runs in their precision, float32 at least.
    top : int
    cosine : bool
        Divide each product by the lengths of row and query; rows of zeros score 0.
    through : callable, optional
        Linear map that each row passes first.
    logits : callable, optional
        By default the scores are the logits.
    softcap : float, optional
        c: shares are those of c tanh(logits / c), which does not part what it saturates.

    Returns
    -------
    Found
        Where the queries lie, wherever the table does.
    """
    home, dtype = queries.device, torch.promote_types(queries.dtype, torch.float32)
    queries = queries.to(table.device, dtype)
    if cosine:
        queries = queries / _length(queries, 0)

    def score(start: int, stop: int) -> Tensor:
        rows = table[start:stop]
        rows = (rows if through is None else through(rows)).to(dtype)
        products = rows @ queries
        return products / _length(rows, 1)[:, None] if cosine else products

    size = table.shape[0]
    rows, top = max(top, _CHUNK_ELEMENTS // max(1, max(queries.shape))), min(top, size)

    def capped(z: Tensor) -> Tensor:
        return z if softcap is None else torch.tanh(z / softcap) * softcap

    total = torch.tensor(-torch.inf, device="cpu")

    def best_of_chunks() -> Iterator[Rows]:
        nonlocal total
        for start in range(0, size, rows):
            stop = min(start + rows, size)
            part = score(start, stop)
            weights = part if logits is None else logits(part, start, stop)
            total = torch.logaddexp(total.to(weights), torch.logsumexp(capped(weights), dim=0))
            largest = weights.topk(min(top, len(weights)), dim=0)
            yield largest.values, part.gather(0, largest.indices), largest.indices + start

    best, scores, ids = reduce(partial(_merged, top), best_of_chunks())
    return Found(scores.to(home), ids.to(home), torch.exp(capped(best) - total).to(home))


def _merged(top: int, first: Rows, second: Rows) -> Rows:
    """Return the best of both, at most ``top``; of equal logits those of the ``first``."""
    logits, scores, ids = (torch.cat(pair) for pair in zip(first, second, strict=True))
    order = logits.argsort(dim=0, descending=True, stable=True)[:top]
    return logits.gather(0, order), scores.gather(0, order), ids.gather(0, order)


def _length(vectors: Tensor, dim: int) -> Tensor:
    length = vectors.norm(dim=dim)
    return torch.where(length > 0, length, torch.ones_like(length))

"""Products of many Jacobians of one map in one sweep: blocks become rows of segments, and rows blocks again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from detjac_lanczos.errors import OperatorError
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.operators.float16 import FORWARDS, TRANSPOSED, fitting, scaled, unscaled
from detjac_lanczos.operators.sweeps import Sweeps


class Swept(Protocol):
    """What a sweep asks of a Jacobian: its segment, a column wide, and its tokens; ``token`` is None of a joint one."""

    prompt: int
    position: int
    token: int | None
    segment: Segment
    tokens: int


@in_own_precision
def products_of(sweeps: Sweeps, operators: Sequence[Swept], blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return A X for every operator and its block: (d_in, b) to (d_out, b)."""
    segments = [replace(A.segment, width=X.shape[1]) for A, X in zip(operators, blocks, strict=True)]
    factors = [fitting([X], FORWARDS) for X in blocks]
    triples = zip(operators, blocks, factors, strict=True)
    rows = torch.cat([_to_rows(A, scaled(X, f), sweeps.d_in) for A, X, f in triples])
    parts = sweeps.forward(segments, rows).split([s.width for s in segments])
    return [unscaled(part.T, f) for part, f in zip(parts, factors, strict=True)]


@in_own_precision
def transposed_products_of(sweeps: Sweeps, operators: Sequence[Swept], blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return Aᵀ Y for every operator and its block: (d_out, b) to (d_in, b)."""
    segments = [replace(A.segment, width=Y.shape[1]) for A, Y in zip(operators, blocks, strict=True)]
    factors = [fitting([Y], TRANSPOSED) for Y in blocks]
    rows = torch.cat([scaled(Y, f).T for Y, f in zip(blocks, factors, strict=True)])
    parts = sweeps.transposed(segments, rows).split([s.source_rows for s in segments])
    return [
        unscaled(_to_columns(A, part, s.width, sweeps.d_in), f)
        for A, part, s, f in zip(operators, parts, segments, factors, strict=True)
    ]


@in_own_precision
def shared_products_of(sweeps: Sweeps, ends: Sequence[Segment], operators: Sequence[Swept], Y: Tensor) -> list[Tensor]:
    """Return Aᵀ Y for every operator, one block for all of them, swept once for each of the ``ends``."""
    segments = [replace(segment, width=Y.shape[1]) for segment in ends]
    factors = fitting([Y], TRANSPOSED)
    rows = sweeps.transposed(segments, scaled(Y, factors).T.repeat(len(segments), 1))
    parts = zip(segments, rows.split([s.rows for s in segments]), strict=True)
    shape = (Y.shape[1], sweeps.d_in)
    by_end = {(s.prompt, s.position): (s.start, part.view(s.length, *shape)) for s, part in parts}
    results = []
    for operator in operators:
        first, part = by_end[operator.prompt, operator.position]
        start = operator.segment.start - first
        positions = part[start : start + operator.tokens]
        results.append(unscaled(positions.permute(0, 2, 1).flatten(0, 1), factors))
    return results


@in_own_precision
def sum_of_products(
    sweeps: Sweeps, ends: Sequence[Segment], operators: Sequence[Swept], blocks: Sequence[Tensor]
) -> Tensor:
    """Return Σ A X over the operators and their blocks, swept once for each of the ``ends``.

    Raises
    ------
    OperatorError
        If the blocks differ in width.
    """
    width, *others = sorted({block.shape[1] for block in blocks})
    if others:
        raise OperatorError(f"matmat_sum adds products of one width; got {width} and {others[0]} columns")
    segments = [replace(segment, width=width) for segment in ends]
    parts = [blocks[0].new_zeros(s.length, width, sweeps.d_in) for s in segments]
    entries = dict(zip(((s.prompt, s.position) for s in segments), zip(segments, parts, strict=True), strict=True))
    factors = fitting(blocks, FORWARDS)
    for operator, block in zip(operators, blocks, strict=True):
        segment, part = entries[operator.prompt, operator.position]
        start = operator.segment.start - segment.start
        rows = _to_rows(operator, scaled(block, factors), sweeps.d_in)
        part[start : start + operator.tokens] += rows.view(operator.tokens, width, sweeps.d_in)
    out = sweeps.forward(segments, torch.cat(parts).flatten(0, 1))
    return unscaled(out.view(len(segments), width, sweeps.d_out).sum(dim=0).T, factors)


def _to_rows(operator: Swept, X: Tensor, d_in: int) -> Tensor:
    if operator.token is not None:
        return X.T
    return X.view(operator.tokens, d_in, -1).permute(0, 2, 1).reshape(-1, d_in)


def _to_columns(operator: Swept, rows: Tensor, width: int, d_in: int) -> Tensor:
    if operator.token is not None:
        return rows.T
    return rows.view(operator.tokens, width, d_in).permute(0, 2, 1).flatten(0, 1)

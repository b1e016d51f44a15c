"""Launching frozen mixing: the device side of `detjac_kernels.mixing` and `detjac_kernels.rebuilt_mixing`."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from detjac_kernels.device.launching import launch
from detjac_kernels.device.mixing_kernel import mixing_kernel

_DTYPE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class MixingTiles:
    """One way to launch mixing: ``own`` × ``columns`` of the output by one program, ``other`` positions a step."""

    own: int
    other: int
    columns: int
    warps: int
    stages: int


SHIPPED = {2: MixingTiles(64, 64, 128, 8, 2), 4: MixingTiles(32, 32, 64, 8, 1)}
"""By bytes of a number, for heads of every size: all are compiled ahead of time in the tests."""


def fits(q: Tensor, values: Tensor) -> bool:
    """Tell whether the kernel takes heads of this size and tensors of these dtypes."""
    return q.shape[-1] <= 256 and q.dtype in _DTYPE and values.dtype in _DTYPE


def mix(
    probabilities: Tensor,
    values: Tensor,
    *,
    group: int = 1,
    first: Tensor | None = None,
    start: int = 0,
    chosen: MixingTiles | None = None,
) -> Tensor:
    """Return ``P V`` for every head, as `detjac_kernels.mix`.

    Parameters
    ----------
    probabilities : Tensor, shape (kv_heads, group · queries, keys)
    values : Tensor, shape (kv_heads, keys, columns)
    group : int
        Heads that share their values; it matters with ``first`` only.
    first : Tensor, shape (queries,), optional
        The first key each query sees; with it, weights that ``first`` and ``start`` hide are not read.
    start : int
        The last key that the first query sees.
    chosen : MixingTiles, optional

    Returns
    -------
    Tensor, shape (kv_heads, group · queries, columns)
    """
    return _stored(probabilities, values, False, group, first, start, chosen)


def mix_transposed(
    probabilities: Tensor,
    cotangents: Tensor,
    *,
    group: int = 1,
    first: Tensor | None = None,
    start: int = 0,
    chosen: MixingTiles | None = None,
) -> Tensor:
    """Return ``Pᵀ Y``, summed over the heads of a group: (kv_heads, keys, columns); the rest as in `mix`."""
    return _stored(probabilities, cotangents, True, group, first, start, chosen)


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
    chosen: MixingTiles | None = None,
) -> Tensor:
    """Return ``diag(query_scale) P diag(key_scale) V``; parameters and result as in `detjac_kernels.mix_rebuilt`."""
    return _rebuilt(q, k, lse, first, values, False, scaling, softcap, key_scale, query_scale, start, chosen)


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
    chosen: MixingTiles | None = None,
) -> Tensor:
    """Return ``diag(key_scale) Pᵀ diag(query_scale) Y``, as `detjac_kernels.mix_rebuilt_transposed`."""
    return _rebuilt(q, k, lse, first, cotangents, True, scaling, softcap, key_scale, query_scale, start, chosen)


def _stored(
    probabilities: Tensor,
    values: Tensor,
    transposed: bool,
    group: int,
    first: Tensor | None,
    start: int,
    chosen: MixingTiles | None,
) -> Tensor:
    kv_heads, rows, keys = probabilities.shape
    return _launch(
        None,
        None,
        None,
        first,
        probabilities,
        values,
        (kv_heads * group, kv_heads, rows // group, keys),
        transposed,
        1.0,
        None,
        None,
        None,
        start,
        chosen,
    )


def _rebuilt(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    first: Tensor,
    values: Tensor,
    transposed: bool,
    scaling: float,
    softcap: float | None,
    key_scale: Tensor | None,
    query_scale: Tensor | None,
    start: int,
    chosen: MixingTiles | None,
) -> Tensor:
    (heads, queries, _), (kv_heads, keys, _) = q.shape, k.shape
    return _launch(
        q,
        k,
        lse,
        first,
        None,
        values,
        (heads, kv_heads, queries, keys),
        transposed,
        scaling,
        softcap,
        key_scale,
        query_scale,
        start,
        chosen,
    )


def _launch(
    q: Tensor | None,
    k: Tensor | None,
    lse: Tensor | None,
    first: Tensor | None,
    probabilities: Tensor | None,
    values: Tensor,
    sizes: tuple[int, int, int, int],
    transposed: bool,
    scaling: float,
    softcap: float | None,
    key_scale: Tensor | None,
    query_scale: Tensor | None,
    start: int,
    chosen: MixingTiles | None,
) -> Tensor:
    heads, kv_heads, queries, keys = sizes
    columns = values.shape[-1]
    own = keys if transposed else queries
    out = values.new_empty(kv_heads, keys if transposed else heads // kv_heads * queries, columns)
    if not out.numel():
        return out
    head_dim = 0 if q is None else q.shape[-1]
    chosen = chosen or SHIPPED[values.dtype.itemsize]
    # Operands that are not there are stood in for by a tensor that is: a kernel without them never reads it.
    given = (q, k, lse, first, probabilities, values, key_scale, query_scale)
    tensors = [out if t is None else t.contiguous() for t in given]
    launch(
        mixing_kernel,
        (triton.cdiv(own, chosen.own), triton.cdiv(columns, chosen.columns), kv_heads if transposed else heads),
        *tensors,
        out,
        queries,
        keys,
        columns,
        start,
        GROUP=heads // kv_heads,
        HEAD_DIM=max(head_dim, 1),
        PADDED_DIM=max(triton.next_power_of_2(head_dim), 16),
        SCALING=scaling,
        SOFTCAP=softcap or 0.0,
        STORED=q is None,
        CAUSAL=first is not None,
        KEY_SCALE=key_scale is not None,
        QUERY_SCALE=query_scale is not None,
        TRANSPOSED=transposed,
        BLOCK_OWN=chosen.own,
        BLOCK_OTHER=chosen.other,
        BLOCK_COLUMNS=chosen.columns,
        SCORE_DTYPE=tl.float32 if q is None else _DTYPE[q.dtype],
        COMPUTE_DTYPE=_DTYPE[values.dtype],
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    return out

"""Frozen attention mixing for many columns: ``P V`` and ``Pᵀ Y``, with P stored or made again tile by tile.

One program makes a tile of positions × columns of one head's product (transposed: of one key head's, summed over the
queries' heads that share it). "Own" rows are those of its output, "other" rows those it sums over: queries and keys,
or keys and queries. Tiles that nothing sees are never visited.
"""

import triton
import triton.language as tl


@triton.jit
def attention_weights(
    scores,
    lse,
    SCALING: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SCORE_DTYPE: tl.constexpr,
):
    """``exp(softcap(scaling · scores) − lse)``, rounded where the pass that made ``lse`` rounds."""
    scores = (scores.to(SCORE_DTYPE).to(tl.float32) * SCALING).to(SCORE_DTYPE).to(tl.float32)
    if SOFTCAP > 0:
        scores = (scores / SOFTCAP).to(SCORE_DTYPE).to(tl.float32)
        scores = (1 - 2 / (tl.exp(2 * scores) + 1)).to(SCORE_DTYPE).to(tl.float32)
        scores = (scores * SOFTCAP).to(SCORE_DTYPE).to(tl.float32)
    return tl.exp(scores - lse).to(SCORE_DTYPE)


@triton.jit
def last_query_that_sees(key, first, queries, BLOCK: tl.constexpr):
    """Return the end of the queries whose first key is not beyond ``key``."""
    end = 0
    for begin in range(0, queries, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        opens = tl.load(first + at, mask=at < queries, other=2147483647)
        end = tl.maximum(end, tl.max(tl.where(opens <= key, at + 1, 0), axis=0))
    return end


@triton.jit
def mixing_kernel(
    q,
    k,
    lse,
    first,
    probabilities,
    values,
    key_scale,
    query_scale,
    out,
    queries,
    keys,
    columns,
    start,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    SCALING: tl.constexpr,
    SOFTCAP: tl.constexpr,
    STORED: tl.constexpr,
    CAUSAL: tl.constexpr,
    KEY_SCALE: tl.constexpr,
    QUERY_SCALE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    SCORE_DTYPE: tl.constexpr,
    COMPUTE_DTYPE: tl.constexpr,
):
    """All tensors lie row by row without gaps, as the twins of `detjac_kernels.device.mixing` say.

    A program's third index is the head of queries, or of keys when transposed.
    """
    own = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    dim = tl.arange(0, PADDED_DIM)
    kv_head = tl.program_id(2) if TRANSPOSED else tl.program_id(2) // GROUP
    own_count = keys if TRANSPOSED else queries
    other_count = queries if TRANSPOSED else keys
    in_own = own < own_count
    if TRANSPOSED:
        begin = tl.maximum(tl.program_id(0) * BLOCK_OWN - start, 0) if CAUSAL else 0
        highest = tl.minimum((tl.program_id(0) + 1) * BLOCK_OWN, keys) - 1
        end = last_query_that_sees(highest, first, queries, 1024) if CAUSAL else queries
        members = GROUP
    else:
        if CAUSAL:
            opens = tl.load(first + own, mask=in_own, other=2147483647)
            begin = tl.maximum(tl.min(opens, axis=0), 0)
            end = tl.minimum(start + (tl.program_id(0) + 1) * BLOCK_OWN, keys)
        else:
            begin = 0
            end = keys
        members = 1
    begin = begin // BLOCK_OTHER * BLOCK_OTHER
    sums = tl.zeros((BLOCK_OWN, BLOCK_COLUMNS), tl.float32)
    for member in range(0, members):
        head = kv_head * GROUP + member if TRANSPOSED else tl.program_id(2)
        own_head = kv_head if TRANSPOSED else head
        other_head = head if TRANSPOSED else kv_head
        if not STORED:
            own_rows = own_head.to(tl.int64) * own_count + own
            own_vectors = tl.load(
                (k if TRANSPOSED else q) + own_rows[:, None] * HEAD_DIM + dim[None, :],
                mask=in_own[:, None] & (dim < HEAD_DIM)[None, :],
                other=0.0,
            )
        if not TRANSPOSED and not STORED:
            own_lse = tl.load(lse + head.to(tl.int64) * queries + own, mask=in_own, other=0.0)
        for at in range(begin, end, BLOCK_OTHER):
            other = at + tl.arange(0, BLOCK_OTHER)
            in_other = other < other_count
            # Rows of k and values are those of key heads, of q and cotangents those of heads, group by group.
            other_rows = other_head.to(tl.int64) * other_count + other
            query = other[None, :] if TRANSPOSED else own[:, None]
            key = own[:, None] if TRANSPOSED else other[None, :]
            visible = in_own[:, None] & in_other[None, :]
            if CAUSAL:
                if TRANSPOSED:
                    other_opens = tl.load(first + other, mask=in_other, other=2147483647)
                    visible = visible & (key <= start + query) & (key >= other_opens[None, :])
                else:
                    visible = visible & (key <= start + query) & (key >= opens[:, None])
            if STORED:
                cell = (head.to(tl.int64) * queries + query) * keys + key
                weights = tl.load(probabilities + cell, mask=visible, other=0.0)
            else:
                other_vectors = tl.load(
                    (q if TRANSPOSED else k) + other_rows[:, None] * HEAD_DIM + dim[None, :],
                    mask=in_other[:, None] & (dim < HEAD_DIM)[None, :],
                    other=0.0,
                )
                scores = tl.dot(own_vectors, tl.trans(other_vectors), input_precision="ieee")
                if TRANSPOSED:
                    level = tl.load(lse + head.to(tl.int64) * queries + other, mask=in_other, other=0.0)[None, :]
                else:
                    level = own_lse[:, None]
                weights = attention_weights(scores, level, SCALING, SOFTCAP, SCORE_DTYPE)
                weights = tl.where(visible, weights, 0.0)
            tile = tl.load(
                values + other_rows[:, None] * columns + column[None, :],
                mask=in_other[:, None] & (column < columns)[None, :],
                other=0.0,
            )
            if TRANSPOSED and QUERY_SCALE:
                factor = tl.load(query_scale + head.to(tl.int64) * queries + other, mask=in_other, other=0.0)
                tile = (tile.to(tl.float32) * factor[:, None]).to(COMPUTE_DTYPE)
            if not TRANSPOSED and KEY_SCALE:
                factor = tl.load(key_scale + other, mask=in_other, other=0.0)
                tile = (tile.to(tl.float32) * factor[:, None]).to(COMPUTE_DTYPE)
            sums = tl.dot(weights.to(COMPUTE_DTYPE), tile.to(COMPUTE_DTYPE), sums, input_precision="ieee")
    if TRANSPOSED and KEY_SCALE:
        sums *= tl.load(key_scale + own, mask=in_own, other=0.0)[:, None]
    if not TRANSPOSED and QUERY_SCALE:
        sums *= tl.load(query_scale + tl.program_id(2).to(tl.int64) * queries + own, mask=in_own, other=0.0)[:, None]
    out_rows = tl.program_id(2).to(tl.int64) * own_count + own
    tl.store(
        out + out_rows[:, None] * columns + column[None, :],
        sums.to(out.dtype.element_ty),
        mask=in_own[:, None] & (column < columns)[None, :],
    )

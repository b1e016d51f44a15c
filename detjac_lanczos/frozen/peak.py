"""What the capture and a sweep hold besides the coefficients and the streams, from shapes alone.

Each count follows the code that allocates, at its fullest moment: `attention` and the hooks of the words for the
capture, `_run` and the maps for a sweep. The buffers that a matrix library keeps to itself are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

from detjac_kernels.rebuilt_mixing import TILE_CELLS as REBUILT_CELLS
from detjac_lanczos.frozen.attention import TILE_CELLS
from detjac_lanczos.frozen.layout import PADDED_CELLS
from detjac_lanczos.frozen.sizes import BlockShape, NetworkShape
from detjac_lanczos.frozen.sweep import ROWS_AT_ONCE


def capture_bytes(shape: NetworkShape, lengths: Sequence[int]) -> int:
    """Return the bytes of the forward pass itself, while its longest prompt is in its largest block."""
    n = max(lengths)
    d, item, wide = shape.hidden_size, shape.itemsize, shape.wide
    most = 0
    for block in shape.blocks:
        # q, k, v, the last two once more for every head, q and k before they are turned, tiles of the output
        vectors = 8 * n * block.heads * block.head_dim * item
        # scores, with their factor, with their mask, and the weights
        scores = 4 * _tile(block, n, TILE_CELLS) * wide
        # gate, up, activation, their product, and the factor that is recorded
        gates = max((5 * n * gate.width for gate in block.gates), default=0) * item
        most = max(most, vectors + scores, gates + 3 * n * d * item)
    masks = n * n * (item + 1) * (2 if len(set(shape.blocks)) > 1 else 1)
    return most + masks + 2 * shape.vocabulary * wide


def sweep_bytes(
    shape: NetworkShape,
    lengths: Sequence[int],
    width: int,
    *,
    rebuilt: tuple[bool, bool] = (False, False),
    lockstep: bool = False,
) -> int:
    """Return the bytes of a sweep of ``width`` columns over all positions of all prompts, its rows included.

    ``rebuilt``: whether some block's attention weights, and some block's gates, are made again on the way.
    ``lockstep``: whether ``lengths`` are of segments of one prompt, each entered at its first position only.
    """
    rows = sum(lengths) * width
    given = len(lengths) * width if lockstep else rows
    d, wide = shape.hidden_size, shape.wide
    most = 0
    for block in shape.blocks:
        most = max(
            most,
            _attending(block, lengths, width, rebuilt[0], lockstep),
            # a GEMM of a new shape runs on both its roads at first, and the products are compared
            rows * (block.heads * block.head_dim + 2 * d),
            _gated(block, rows, width, d, rebuilt[1]),
        )
    # what the caller gave, and the stream; indices of rows and of their slots
    heads = max(block.heads + block.kv_heads for block in shape.blocks)
    return (most + (given + rows) * d) * wide + 8 * rows * (heads + 8)


def check_bytes(shape: NetworkShape, lengths: Sequence[int], *, rebuilt: tuple[bool, bool] = (False, False)) -> int:
    """Return the bytes of the self-check of a model's first network: four inputs at once for its first prompt.

    Besides the rows of their sweep there are the inputs, once more side by side, and what they are drawn from.
    """
    inputs = 11 * lengths[0] * shape.hidden_size * shape.wide
    return sweep_bytes(shape, lengths[:1], 4, rebuilt=rebuilt) + inputs


def _attending(block: BlockShape, lengths: Sequence[int], width: int, rebuilt: bool, lockstep: bool) -> int:
    """Numbers held while attention weights meet values: all values, all mixed ones, and both in a tile's rectangle."""
    n, rows = max(lengths), sum(lengths) * width
    padded = n * width
    if lockstep:
        padded = min(padded * len(lengths), max(padded, PADDED_CELLS))
    held = (rows + padded) * (block.kv_heads + block.heads) * block.head_dim
    if not rebuilt:
        return held
    cells = _tile(block, n, REBUILT_CELLS)
    return held + (rows * block.kv_heads + cells // n * width) * block.head_dim + 2 * cells


def _gated(block: BlockShape, rows: int, width: int, d: int, rebuilt: bool) -> int:
    """Numbers held while a part of the rows is in the wide middle of an MLP."""
    parts = -(-rows // ROWS_AT_ONCE)
    part = -(-rows // parts)
    whole = rows * d + part * d if parts > 1 else 0
    middle = max((part * (d + 3 * gate.width) for gate in block.gates), default=part * d)
    if rebuilt:
        positions = -(-part // width)
        made = max((positions * (gate.inputs + 4 * gate.width) for gate in block.gates), default=0)
        middle = max(middle, made + max((part * gate.width for gate in block.gates), default=0) * (width > 1))
    return whole + middle


def _tile(block: BlockShape, n: int, cells: int) -> int:
    return min(max(cells, 32 * block.heads * n), block.heads * n * n)

"""What the capture and a sweep hold besides the coefficients and the streams, from shapes alone.

Each count follows the code that allocates, at its fullest moment: `attention` and the hooks of the words for the
capture, `_run` and the maps for a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detjac_kernels.decoded import rows_decoded_at_once
from detjac_kernels.rebuilt_mixing import TILE_CELLS as REBUILT_CELLS
from detjac_lanczos.frozen.attention import TILE_CELLS
from detjac_lanczos.frozen.layout import PADDED_CELLS
from detjac_lanczos.frozen.sizes import BlockShape, NetworkShape
from detjac_lanczos.frozen.sweep import ROWS_AT_ONCE, height_of_parts

_LIBRARY = {2: 870 << 10, 4: 257 << 10}
"""Bytes that oneDNN takes for a product on each thread, at most, by those of a number: a padded panel of the matrix.
Measured on SmolLM2's."""

_NUMBERS = 1 << 11
"""Bytes of single numbers and of a few for each head."""


def capture_bytes(shape: NetworkShape, lengths: Sequence[int]) -> int:
    """Return the bytes of the observed pass itself, while its longest prompt is in its largest block.

    The model's own pass before it holds no more where its attention runs tile by tile: masks of one byte, and in each
    call one of numbers.
    """
    n = max(lengths)
    most = 0
    for block in shape.kinds:
        # scores, with their factor, with their mask, and the weights
        scores = 4 * _tile(block, n, TILE_CELLS) * shape.wide
        most = max(most, _vectors(block, n, shape.itemsize) + scores, _mlp(shape, block, n))
    # the last mask is made of one of a byte each
    masks = n * n * (shape.masks * shape.itemsize + 1)
    return most + masks + 2 * shape.vocabulary * shape.wide + _others(shape) + _library(shape)


def own_pass_bytes(shape: NetworkShape, lengths: Sequence[int]) -> int:
    """Return the bytes of the model's own pass where its attention holds whole scores; 0 where it does not.

    Nothing is frozen yet: there are the stream with its sum and norm, and the outputs of all prompts.
    """
    whole = [block for block in shape.kinds if block.own != "tiled"]
    if not whole:
        return 0
    n, d, item = max(lengths), shape.hidden_size, shape.itemsize
    most = 0
    for block in whole:
        # "eager" returns the weights, which live as long as their block
        kept = 0 if block.own == "math" else block.heads * n * n * item
        most = max(most, _whole_scores(shape, block, n) + 3 * n * d * item, kept + _mlp(shape, block, n))
    outputs = sum(lengths) * shape.output_size * item
    return most + outputs + 2 * shape.vocabulary * shape.wide + _others(shape) + _library(shape)


def _whole_scores(shape: NetworkShape, block: BlockShape, n: int) -> int:
    """Bytes that a model's own attention holds with scores of all heads, masks and vectors included."""
    item, wide, masks = shape.itemsize, shape.wide, shape.masks * n * n
    cells = block.heads * n * n
    if block.own == "math":  # scores, weights, and which scores are hidden; the mask in numbers once more in every call
        return (2 * wide + 1) * cells + wide * n * n + masks + _vectors(block, n, wide)
    if block.own == "sinks":  # scores; with the sinks, and less their largest
        return 3 * item * (cells + block.heads * n) + masks * item + _vectors(block, n, item)
    # scores with a factor or a mask, and without; or around a softmax in float32, which is turned into and out of
    scores = {2: 2 + 4 + 4, 4: 4 + 4, 8: 8 + 4 + 8}[item]
    return scores * cells + masks * item + _vectors(block, n, item)


def _vectors(block: BlockShape, n: int, item: int) -> int:
    """Bytes of q, k, v, the last two once more for every head, q and k before they are turned, and of the output."""
    return 8 * n * block.heads * block.head_dim * item


def _mlp(shape: NetworkShape, block: BlockShape, n: int) -> int:
    """Bytes that a pass holds in the MLP of a block, the stream, its sum and norm among them."""
    # gate, up, activation, their product, and the factor that is recorded
    gates = max((5 * n * gate.width for gate in block.gates), default=0)
    # of experts all positions may have chosen one: gate and up side by side and apart, and the same
    experts = max((7 * n * e.width + e.gathered for e in block.experts), default=0)
    return (max(gates, experts) + 3 * n * shape.hidden_size) * shape.itemsize


def sweep_bytes(
    shape: NetworkShape,
    lengths: Sequence[int],
    width: int,
    *,
    rebuilt: tuple[bool, bool],
    lockstep: bool = False,
    met: bool = False,
    affine: bool = False,
) -> int:
    """Return the bytes of a sweep of ``width`` columns over all positions of all prompts, its rows included.

    Parameters
    ----------
    shape : NetworkShape
    lengths : sequence of int
    width : int
    rebuilt : (bool, bool)
        Whether some block's attention weights, and some block's gates, are made again on the way.
    lockstep : bool
        Whether ``lengths`` are of segments of one prompt, each entered at its first position only, which narrow one by
        one after their first sweep.
    met : bool
        Whether products of these shapes were made before: a GEMM of a new shape runs on both its roads at first, and
        the products are compared.
    affine : bool
        Whether biases are added on the way.
    """
    rows = sum(lengths) * width
    # fewer rows go in taller parts: at most in as many full ones as there are
    uneven = lockstep and met
    heights = {rows, rows // ROWS_AT_ONCE * ROWS_AT_ONCE} - {0} if uneven else {rows}
    given = len(lengths) * width if lockstep else rows
    products = 2 if shape.itemsize == 4 and not met else 1
    products += shape.scratch > 0  # the part of a matrix that is decoded gives a part of the product
    most = 0
    for block in shape.kinds:
        mixed = block.heads * block.head_dim
        values = block.kv_heads * block.head_dim
        read = shape.hidden_size * (1 + block.centered)
        apart = values if block.panel else 0  # products of some heads, and then the place of all
        around = max(read + apart + values * products, mixed + shape.hidden_size * products)
        around = max(around, shape.hidden_size + mixed * products)
        most = max(
            most,
            _attending(shape, block, lengths, width, rebuilt[0], lockstep),
            (rows * around + block.panel) * shape.itemsize + _library(shape),
            *(
                _rowwise(shape, block, h, width, rebuilt[1], products, uneven=uneven, affine=affine) + _library(shape)
                for h in heights
            ),
        )
    # what the caller gave, the stream, and the sum so far where branches read one stream
    streams = (given + (2 if shape.parallel else 1) * rows) * shape.hidden_size * shape.itemsize
    # indices of rows, of their cells by head, and of their experts
    by_head = sum({block.heads for block in shape.kinds}) + sum({block.kv_heads for block in shape.kinds})
    by_head += max((block.kv_heads for block in shape.kinds), default=0)  # the last mixing has a layout of its own
    chosen = max((expert.chosen for block in shape.kinds for expert in block.experts), default=0)
    return most + streams + 8 * rows * (8 + by_head + 2 * chosen) + _others(shape)


def check_bytes(shape: NetworkShape, lengths: Sequence[int], *, rebuilt: tuple[bool, bool]) -> int:
    """Return the bytes of the self-check of a model's first network: its first prompt three times at once, then four.

    Products of four mostly have shapes that those of three have met.
    Besides the rows of their sweep there are the inputs, once more side by side, and what they are drawn from. The
    logits are compared with the model's: both, their difference, and one of them in float64.
    """
    inputs = 11 * lengths[0] * shape.hidden_size * shape.wide
    logits = shape.vocabulary * (2 * shape.itemsize + 8) + _others(shape)
    met = (3 * lengths[0] - 1).bit_length() == (4 * lengths[0] - 1).bit_length()
    three = sweep_bytes(shape, lengths[:1], 3, rebuilt=rebuilt, affine=True)
    four = sweep_bytes(shape, lengths[:1], 4, rebuilt=rebuilt, met=met, affine=True)
    return max(three + inputs, four + inputs, logits) + _library(shape)


def _attending(
    shape: NetworkShape, block: BlockShape, lengths: Sequence[int], width: int, rebuilt: bool, lockstep: bool
) -> int:
    """Bytes held while attention weights meet values: all values, all mixed ones, and both in a tile's rectangle."""
    n, rows = max(lengths), sum(lengths) * width
    wide, d = shape.wide, block.head_dim
    padded = tile = n * width
    copied = 0
    if lockstep:
        tile = max(tile, PADDED_CELLS)
        padded = min(padded * len(lengths), tile)
        copied = block.heads * n * n if padded == tile else 0  # a tile that leaves out positions copies the others
    held = rows * (block.kv_heads + block.heads) * d * shape.itemsize
    held += (padded * (block.kv_heads + block.heads) * d + copied) * wide
    if shape.itemsize < wide:  # rows of a tile once more, as they are turned from one precision into the other
        held += max(0, min(rows, tile) * block.heads - padded * block.kv_heads) * d * wide
    if not rebuilt:
        return held
    cells = _tile(block, n, REBUILT_CELLS)
    return held + ((rows * block.kv_heads + cells // n * width) * d + 2 * cells) * wide


def _rowwise(
    shape: NetworkShape,
    block: BlockShape,
    rows: int,
    width: int,
    rebuilt: bool,
    products: int,
    *,
    uneven: bool,
    affine: bool,
) -> int:
    """Bytes held while a part of the rows is in the wide middle of an MLP, or all of it in that of one expert.

    There a product is made first, its input at hand, and then meets its factor, which has one row for each position
    that the rows of the part lie at, or for each row where widths differ.
    """
    part = height_of_parts(rows, width)
    shared = 1 if uneven or width > part else width
    factors = -(-part // shared)
    d, item, wide = shape.hidden_size, shape.itemsize, shape.wide
    turned = 0 if item == wide else 2 * wide  # what is multiplied by a factor of another precision, and the result
    read = d * (1 + block.centered)
    middle = part * read * item
    for gate in block.gates:
        others = (gate.factors - 1) * part * (gate.width + d) * item  # of the mean of two maps, the one that is done
        product = read + gate.width * products
        if shape.scratch:  # on the way back the whole width is made again by each part of the matrix
            wider, narrower = rows_decoded_at_once(gate.width, d), rows_decoded_at_once(d, gate.width)
            product = max(read + gate.width + (products - 1) * wider, gate.width * products + narrower)
        multiplied = part * (read - d + gate.width) * item + part * gate.width * turned + factors * gate.width * wide
        if affine and gate.biased:  # the product beside its sum; of two precisions in the wider one first
            multiplied += part * gate.width * (item if item == wide else 2 * wide)
        if rebuilt:
            multiplied += -(-part // width) * (gate.inputs * item + 4 * gate.width * wide)
        middle = max(middle, max(part * product * item, multiplied) + others)
    for expert in block.experts:
        product = part * expert.width * products * item + expert.gathered * item
        multiplied = part * expert.width * (item + turned) + factors * expert.width * wide
        middle = max(middle, 2 * part * d * item + max(product, multiplied))
    return middle


def _tile(block: BlockShape, n: int, cells: int) -> int:
    return min(max(cells, 32 * block.heads * n), block.heads * n * n)


def _others(shape: NetworkShape) -> int:
    """Bytes that do not depend on the prompt: of packed weights, of what weights are made into."""
    return shape.scratch + shape.made + _NUMBERS


def _library(shape: NetworkShape) -> int:
    """Bytes that a product takes of the library's own."""
    return torch.get_num_threads() * _LIBRARY.get(shape.itemsize, 0)

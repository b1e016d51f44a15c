"""Which float32 GEMM of this machine is the fastest, found by measurement.

torch reaches two float32 libraries on CPU: the default one of ``torch.nn.functional.linear``, and oneDNN, which on many
processors is up to twice as fast at the row counts of a sweep and takes a transposed view in place. (Its fused
elementwise epilogues were measured too: slower than a separate pass over rows that are still in cache.) Both are
accurate to float32. oneDNN is reached by an operator that is not public, so it is probed for, compared once with the
default for every shape class by every process, and left alone where it is missing or disagrees, whatever is recorded.

The few rows of a prompt have a third: the default's product of a batch, of the matrix in parts of its rows. It rounds
no worse than the default, where oneDNN rounds twice as much; what is frozen is held against the model's own pass.

The choice is data: `choices` returns the table made so far, `replay` puts a recorded one in force, `forget` takes it
back.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, reduce
from itertools import chain

import torch
from torch import Tensor

_AGREEMENT = 1e-5
"""Largest relative difference (Frobenius) between two roads that still counts as the same float32 product."""

_REPEATS = 3

_LONGEST = 1536
"""Terms of a dot product that oneDNN adds up in one go.

Of 2,048 the rounding shows in single entries (3e-6 of Gemma 3 270m's J for 1.7e-6 in two parts). A transposed view is
cut in place; a matrix as it lies would have to be copied.
"""

_FEW_ROWS = 128
"""Rows up to which a product of a batch was found to be faster: 2 to 3 times at 7, by an eighth at 128 (Zen 5)."""

_LEAST = 1 << 21
"""Numbers of a matrix from which on it is multiplied so. Those of SmolLM2 would gain 9 ms of a pass, whose rounding is
that of the model's own pass as long as its products are: Σ J x is 8.3e-7 from the model's own y, and 1.1e-6 without.
"""

_PARTS = 4
"""Parts of a matrix in such a batch; with 2, 8 and 16 it takes about as long."""

_table: dict[str, str] = {}
_compared: set[str] = set()
"""Shape classes in which this process has compared the two roads."""

_lock = threading.Lock()


def choices() -> dict[str, str]:
    """Return a copy of the table: shape class ("f32 direction rows×in→out") to road ("default", "onednn", "parts")."""
    return dict(_table)


def replay(recorded: Mapping[str, str]) -> None:
    """Put a recorded table in force: these shape classes are not timed again, unless their road is none of theirs."""
    with _lock:
        _table.update({shape: road for shape, road in recorded.items() if road in _ROADS})


def forget(shapes: Iterable[str]) -> None:
    """Take shape classes out of the table."""
    with _lock:
        for shape in shapes:
            _table.pop(shape, None)


def product(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
    """Return ``x weightᵀ + add``: (R, d) and (f, d), possibly a transposed view, to (R, f).

    The result is a tensor of its own, or lies where ``add`` was.
    """
    rows = x.shape[0]  # len(x) takes four times as long
    served = x.dtype is torch.float32 and x.is_cpu and rows > 0 and _onednn_available()
    if not served or (way := _way(weight)) is None:
        return _default(x, weight, add)
    return _fastest(_shape_class(way, (rows - 1).bit_length(), *weight.shape), "onednn", x, weight, add)


def product_of_few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weightᵀ + bias`` as exact as torch's default: (R, d), (f, d) and (f,) to (R, f), a tensor of its own.

    The bias is where sums begin, as in `torch.nn.functional.linear`: added to them, it would round to other bits.
    """
    add = None if bias is None else bias.expand(len(x), -1).clone()
    served = x.dtype is torch.float32 and x.is_cpu and weight.is_contiguous() and len(weight) % _PARTS == 0
    if not served or not 0 < len(x) <= _FEW_ROWS or weight.numel() < _LEAST:
        return _default(x, weight, add)
    return _fastest(_shape_class("few xWt", (len(x) - 1).bit_length(), *weight.shape), "parts", x, weight, add)


def _fastest(key: str, rival: str, x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
    road = _table.get(key)
    if road != "default" and (road != rival or key not in _compared):
        road = _choose(key, rival, x, weight)
    return _ROADS[road](x, weight, add)


def _way(weight: Tensor) -> str | None:
    """Return how a matrix is multiplied; None for a part of a wider one.

    For such a part oneDNN falls back to its reference, thousands of times slower.
    """
    if weight.is_contiguous():
        return "xWt"
    return "yW" if weight.stride() == (1, weight.shape[0]) else None


@cache
def _shape_class(way: str, bits: int, f: int, d: int) -> str:
    return f"f32 {way} {1 << bits}x{d}->{f}"


def _default(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
    return torch.mm(x, weight.t()) if add is None else torch.addmm(add, x, weight.t(), out=add)


def _onednn(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
    if weight.shape[1] <= _LONGEST or weight.is_contiguous():
        product = _onednn_at_once(x, weight)
        return product if add is None else add.add_(product)
    parts = -(-weight.shape[1] // _LONGEST)
    pairs = zip(x.chunk(parts, dim=1), weight.chunk(parts, dim=1), strict=True)
    products = (_onednn_at_once(*pair) for pair in pairs)
    return reduce(Tensor.add_, products if add is None else chain([add], products))


def _onednn_at_once(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
    return product


def _in_parts(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
    factors = x.expand(_PARTS, *x.shape), weight.unflatten(0, (_PARTS, -1)).transpose(1, 2)
    begun = None if add is None else add.unflatten(1, (_PARTS, -1)).transpose(0, 1)
    return (torch.bmm(*factors) if begun is None else torch.baddbmm(begun, *factors)).transpose(0, 1).flatten(1)


_ROADS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "default": _default,
    "onednn": _onednn,
    "parts": _in_parts,
}


@cache
def _onednn_available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _agree(rival: str, x: Tensor, weight: Tensor) -> bool:
    """Compare a road with the default, with no more than two products in memory, both gone when it returns."""
    expected, got = _default(x, weight), _ROADS[rival](x, weight, None)
    return bool(got.sub_(expected).norm() <= _AGREEMENT * expected.norm())


def _choose(key: str, rival: str, x: Tensor, weight: Tensor) -> str:
    """Compare a road with the default on the real operands; remember it where it agrees and was recorded or is faster.

    Another thread may have chosen meanwhile.
    """
    with _lock:
        road = _table.get(key)
        if road == "default" or (road == rival and key in _compared):
            return road
        try:
            agrees = _agree(rival, x, weight)
        except RuntimeError:
            agrees = False
        _compared.add(key)
        if road != rival or not agrees:
            _table[key] = _measure(rival, x, weight) if agrees else "default"
        return _table[key]


def _measure(rival: str, x: Tensor, weight: Tensor) -> str:
    """Time a road and the default on the real operands, the best of a few turns each; return the faster one."""
    best = {"default": float("inf"), rival: float("inf")}
    for _ in range(_REPEATS):
        for road in best:
            start = time.perf_counter()
            _ROADS[road](x, weight, None)
            best[road] = min(best[road], time.perf_counter() - start)
    return min(best, key=best.__getitem__)

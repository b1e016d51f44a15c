"""Linear modules of any other packed format, through the ``dequantize()`` that the module or its weight offers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from detjac_kernels import linear, linear_transposed
from detjac_lanczos.errors import ModelError, UnsupportedModelError, first_line, shortage
from detjac_lanczos.models.weights import UnfusedWeight

_METHODS = ("dequantize", "dequantize_weight")
_LIKE = 0.1
"""How far, relatively, a module's own product of rounded activations may lie from that with its dequantised weight."""

_DEFECTS = 3
"""How far, in defects of its linearity."""

_ROWS = 4

_distances: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


class DequantizedWeight(UnfusedWeight):
    """Some rows of a matrix (f, d) that its format decodes whole, anew for each product."""

    def __init__(self, decode: Callable[[], Tensor], runs: Sequence[range], d: int, device: torch.device) -> None:
        self._decode, self.runs = decode, runs
        self.shape, self.device = (sum(map(len, runs)), d), device

    def part(self, runs: Sequence[range]) -> DequantizedWeight:
        """Return some of its rows."""
        return DequantizedWeight(self._decode, runs, self.shape[1], self.device)

    def product(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ``: (R, d) to (R, f)."""
        return linear(x, self.dense(x.dtype))

    def product_transposed(self, y: Tensor) -> Tensor:
        """Return ``y W``: (R, f) to (R, d)."""
        return linear_transposed(y, self.dense(y.dtype))

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d)."""
        matrix = self._decode()
        rows = [matrix[run.start : run.stop : run.step] for run in self.runs]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).to(dtype or matrix.dtype)


def offers_dequantize(module: nn.Module) -> bool:
    """Tell whether a linear module, or its weight, decodes itself."""
    leaf = next(module.children(), None) is None and not isinstance(module, nn.Embedding)
    return leaf and next(_methods_of(module), None) is not None


def description_of(module: nn.Module) -> str:
    """Return the format of a module by its class, or by that of its weight."""
    return type(next(_methods_of(module)).__self__).__name__


def decodes_to_finite(module: nn.Module) -> bool:
    """Tell whether such a module decodes to finite numbers; one that cannot be decoded is refused where it is used."""
    try:
        return bool(torch.isfinite(next(_methods_of(module))()).all())
    except Exception:  # whatever a foreign module raises on a device that it is not made for
        return True


def distance_of_own_products(model: nn.Module) -> float:
    """Return how far, relatively, the products of modules that round activations lie from those with their weights.

    The most of all modules whose weights were taken; 0 where none rounds more than its results.
    """
    return max((_distances.get(module, 0.0) for module in model.modules()), default=0.0)


@torch.no_grad()
def dequantized_weight(module: Any, name: str) -> DequantizedWeight:
    """Return the weight of such a module, after a look at whether it is what the module multiplies by.

    Raises
    ------
    UnsupportedModelError
        If it decodes to no matrix, or to another one.
    ModelError
        If it decodes to values that are not finite.
    """
    method = next(_methods_of(module))
    called = f"{name} ({type(module).__name__})"
    try:
        matrix = method()
        bad = int((~torch.isfinite(matrix)).sum()) if isinstance(matrix, Tensor) else 0
    except Exception as error:  # whatever a foreign module raises on a device that it is not made for
        if shortage(error):
            raise
        raise UnsupportedModelError(
            f"{called} cannot be dequantised here ({first_line(error)[:200]}); load the model dequantised, or on a "
            "device that its format is made for"
        ) from error
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.is_floating_point():
        raise UnsupportedModelError(f"{called} dequantises to no matrix; load the model dequantised")
    if bad:
        raise ModelError(
            f"{called}: its {method.__name__}() gives {bad} NaN or infinite values of {matrix.numel()}; get a sound "
            "copy of the model"
        )
    said = f"does not multiply by what its {method.__name__}() gives"
    for turned in (False, True):
        W = matrix.t() if turned else matrix
        try:
            distance, rounding, allowed = _distance(module, W)
        except Exception as error:  # whatever a foreign module raises, at an input of the wrong width for one
            if shortage(error):
                raise
            if W.shape[1] == getattr(module, "in_features", None):
                said = f"cannot multiply here ({first_line(error)[:200]})"
            continue
        if distance <= allowed:
            _distances[module] = distance if distance > rounding else 0.0
            decode: Callable[[], Tensor] = (lambda: method().t()) if turned else method
            return DequantizedWeight(decode, (range(W.shape[0]),), W.shape[1], matrix.device)
    raise UnsupportedModelError(f"{called} {said}; load the model dequantised")


def _distance(module: nn.Module, W: Tensor) -> tuple[float, float, float]:
    """Return how far a module's products are from those with W, relatively; what rounding explains; what is allowed.

    A product that rounds its activations is not linear, and its distance from the linear one is of the size of that
    defect: a weight that is another one lies further off.
    """
    a, b = torch.randn(2, _ROWS, W.shape[1], generator=torch.Generator().manual_seed(0), device="cpu").to(W)
    x = torch.cat([a, b, a + b])
    bias = getattr(module, "bias", None)
    offset = torch.zeros_like(W[:, 0]) if bias is None else bias.to(W.dtype)
    expected = (x @ W.t()).double()
    own = module(x).double() - offset.double()
    if own.shape != expected.shape:
        return math.inf, 0.0, 0.0
    size = float(expected.norm()) or 1.0
    fa, fb, fab = own.split(_ROWS)
    defect = float((fab - fa - fb).norm()) / (float(own.norm()) or 1.0)
    rounding = 2 * torch.finfo(W.dtype).eps + 10 * torch.finfo(torch.float32).eps * W.shape[1] ** 0.5
    rounding *= 1 + len(x) ** 0.5 * float(offset.double().norm()) / size
    return float((own - expected).norm()) / size, rounding, min(_LIKE, rounding + _DEFECTS * defect)


def _methods_of(module: Any) -> Iterator[Any]:
    """Yield the methods by which a module, or else its weight, decodes itself."""
    for owner in (module, getattr(module, "weight", None)):
        for name in _METHODS:
            method = getattr(owner, name, None)
            # Every torch tensor has a method of this name, for torch's own quantised types.
            if callable(method) and getattr(type(owner), name, None) is not getattr(Tensor, name, None):
                yield method

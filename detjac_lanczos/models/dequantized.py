"""Linear modules of any other packed format, through the ``dequantize()`` that the module or its weight offers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detjac_kernels import linear, linear_transposed
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models.weights import UnfusedWeight

_METHODS = ("dequantize", "dequantize_weight")
_LIKE = 0.1
"""How far, relatively, a module's own product of rounded activations may lie from that with its dequantised weight."""


class DequantizedWeight(UnfusedWeight):
    """Some rows of a matrix that its format decodes whole, anew for each product."""

    def __init__(self, decode: Callable[[], Tensor], shape: tuple[int, int], device: torch.device) -> None:
        self._decode, self._whole, self._device = decode, shape, device
        self.runs: Sequence[range] = (range(shape[0]),)

    def part(self, runs: Sequence[range]) -> DequantizedWeight:
        """Return some of its rows."""
        chosen = DequantizedWeight(self._decode, self._whole, self._device)
        chosen.runs = runs
        return chosen

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, (f, d)."""
        return sum(map(len, self.runs)), self._whole[1]

    @property
    def device(self) -> torch.device:
        """Where its values lie."""
        return self._device

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

    def fingerprint(self) -> str:
        """Return a SHA-256 of the decoded values, shape and dtype."""
        matrix = self.dense().contiguous()
        data = matrix.view(torch.uint8).cpu().numpy().tobytes()
        return hashlib.sha256(f"{tuple(matrix.shape)} {matrix.dtype} ".encode() + data).hexdigest()


def offers_dequantize(module: nn.Module) -> bool:
    """Tell whether a linear module, or its weight, decodes itself."""
    leaf = next(module.children(), None) is None and not isinstance(module, nn.Embedding)
    return leaf and _method_of(module) is not None


def description_of(module: nn.Module) -> str:
    """Return the format of a module by its class, or by that of its weight."""
    method = _method_of(module)
    return type(module if method is None else method.__self__).__name__  # type: ignore[attr-defined]


@torch.no_grad()
def dequantized_weight(module: Any, name: str) -> DequantizedWeight:
    """Return the weight of such a module, after a look at whether it is what the module multiplies by.

    Raises
    ------
    UnsupportedModelError
        If it decodes to no matrix, or to another one.
    """
    method = _method_of(module)
    matrix = None if method is None else method()
    if method is None or not isinstance(matrix, Tensor) or matrix.ndim != 2 or not matrix.is_floating_point():
        raise UnsupportedModelError(
            f"{name} ({type(module).__name__}) dequantises to no matrix; load the model dequantised"
        )
    dtype = matrix.dtype
    for turned in (False, True):
        W = matrix.t() if turned else matrix
        x = torch.randn(2, W.shape[1], generator=torch.Generator().manual_seed(0)).to(W.device, dtype)
        try:
            own = module(x)
        except Exception:  # whatever a foreign module raises at an input of the wrong width
            continue
        bias = getattr(module, "bias", None)
        expected = x @ W.t() if bias is None else x @ W.t() + bias.to(dtype)
        if own.shape == expected.shape and (own - expected).norm() <= _LIKE * expected.norm():
            shape = (W.shape[0], W.shape[1])
            decode: Callable[[], Tensor] = (lambda: method().t()) if turned else method
            return DequantizedWeight(decode, shape, matrix.device)
    raise UnsupportedModelError(
        f"{name} ({type(module).__name__}) does not multiply by what its {method.__name__}() gives; load the model "
        "dequantised"
    )


def _method_of(module: Any) -> Callable[[], Any] | None:
    for owner in (module, getattr(module, "weight", None)):
        for name in _METHODS:
            method = getattr(owner, name, None)
            # Every torch tensor has a method of this name, for torch's own quantised types.
            if callable(method) and getattr(type(owner), name, None) is not getattr(Tensor, name, None):
                return method
    return None

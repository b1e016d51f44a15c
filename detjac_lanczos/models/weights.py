"""What a weight is: a matrix that multiplies rows from either side, in place.

``Weight`` is the protocol the detached network speaks. The dense implementation holds the model's own parameter; no
second copy, in either direction.
"""

import hashlib
from typing import Protocol

import torch
from torch import Tensor, nn

from detjac_kernels import linear, linear_transposed
from detjac_lanczos.errors import UnsupportedModelError


class Weight(Protocol):
    """A linear map on rows: ``apply`` is ``x Wᵀ``, ``apply_transposed`` is ``y W``, with ``shape`` (f, d)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, (f, d)."""

    def apply(
        self,
        x: Tensor,
        *,
        scale: Tensor | None = None,
        gate: Tensor | None = None,
        out_scale: Tensor | None = None,
        add: Tensor | None = None,
    ) -> Tensor:
        """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""

    def apply_transposed(
        self,
        y: Tensor,
        *,
        scale: Tensor | None = None,
        gate: Tensor | None = None,
        out_scale: Tensor | None = None,
        add: Tensor | None = None,
    ) -> Tensor:
        """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d), for tests."""

    def fingerprint(self) -> str:
        """Return a SHA-256 of the values, shape and dtype."""


class DenseWeight:
    """A parameter of the model, used where it lies."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, (f, d)."""
        return self.parameter.shape[0], self.parameter.shape[1]

    def apply(
        self,
        x: Tensor,
        *,
        scale: Tensor | None = None,
        gate: Tensor | None = None,
        out_scale: Tensor | None = None,
        add: Tensor | None = None,
    ) -> Tensor:
        """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""
        return linear(x, self.parameter, scale=scale, gate=gate, out_scale=out_scale, add=add)

    def apply_transposed(
        self,
        y: Tensor,
        *,
        scale: Tensor | None = None,
        gate: Tensor | None = None,
        out_scale: Tensor | None = None,
        add: Tensor | None = None,
    ) -> Tensor:
        """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""
        return linear_transposed(y, self.parameter, scale=scale, gate=gate, out_scale=out_scale, add=add)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d)."""
        return self.parameter if dtype is None else self.parameter.to(dtype)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the values, shape and dtype."""
        data = self.parameter.contiguous().view(torch.uint8).cpu().numpy()
        head = f"{tuple(self.parameter.shape)} {self.parameter.dtype} ".encode()
        return hashlib.sha256(head + data.tobytes()).hexdigest()


def weight_of(module: nn.Module, name: str) -> Weight:
    """Return the weight of a linear module, or refuse what is not a plain dense one.

    Raises
    ------
    UnsupportedModelError
        If the module is not a dense ``torch.nn.Linear`` whose values are in memory.
    """
    parameter = getattr(module, "weight", None)
    if type(module) is not nn.Linear or not isinstance(parameter, Tensor):
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__}, not a dense torch.nn.Linear; load the model plain"
        )
    if parameter.is_meta:
        raise UnsupportedModelError(f"{name} has no values in memory (meta device); load the model without offloading")
    return DenseWeight(parameter)

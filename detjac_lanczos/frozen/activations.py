"""act(z)/z of each activation, without a division: the frozen ratio of ``act(z) = (act(z)/z) z`` and its limit at 0."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError


def _gelu_tanh(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _fast_gelu(z: Tensor) -> Tensor:
    # transformers writes √(2/π) with ten digits here.
    return 0.5 * (1 + torch.tanh(0.7978845608 * z * (1 + 0.044715 * z * z)))


def _gelu(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))


_RATIOS: dict[str, Callable[[Tensor], Tensor]] = {
    "SiLU": torch.sigmoid,
    "SiLUActivation": torch.sigmoid,
    "GELU": _gelu,
    "GELUActivation": _gelu,
    "GELUTanh": _gelu_tanh,
    "NewGELUActivation": _gelu_tanh,
    "FastGELUActivation": _fast_gelu,
    "QuickGELUActivation": lambda z: torch.sigmoid(1.702 * z),
    "ReLU": lambda z: (z > 0).to(z.dtype),
    "ReLUSquaredActivation": torch.relu,
}


def ratio(activation: nn.Module, z: Tensor) -> Tensor:
    """Return act(z)/z elementwise.

    Raises
    ------
    UnsupportedModelError
        If the activation has no known ratio.
    """
    name = type(activation).__name__
    if name == "GELU" and getattr(activation, "approximate", "none") == "tanh":
        name = "GELUTanh"
    if name not in _RATIOS:
        known = ", ".join(sorted(_RATIOS))
        raise UnsupportedModelError(f"no ratio act(z)/z is known for the activation {name}; known: {known}")
    return _RATIOS[name](z)

"""act(z)/z of each activation: the frozen ratio of ``act(z) = (act(z)/z) z`` and its limit at 0.

There is a division only where it keeps every digit. At a kink in 0 the ratio is that of the left side, as relu's is 0.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu6, softplus

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models.offloaded import tensor_of


def _gelu_tanh(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _fast_gelu(z: Tensor) -> Tensor:
    # transformers writes √(2/π) with ten digits here.
    return 0.5 * (1 + torch.tanh(0.7978845608 * z * (1 + 0.044715 * z * z)))


def _gelu(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))


def _tanh(z: Tensor) -> Tensor:
    return torch.where(z == 0, 1.0, torch.tanh(z) / z)


def _relu6(z: Tensor) -> Tensor:
    return torch.where(z > 6, 6 / z, (z > 0).to(z.dtype))


def _leaky_relu(activation: Any, z: Tensor) -> Tensor:
    return torch.where(z > 0, 1.0, torch.full_like(z, activation.negative_slope))


def _prelu(activation: Any, z: Tensor) -> Tensor:
    slope: Any = tensor_of(activation, "weight")
    if slope.numel() != 1:
        raise UnsupportedModelError(
            f"a PReLU with {slope.numel()} slopes has one for each position, not for each neuron; give it one slope"
        )
    return torch.where(z > 0, 1.0, slope).to(z.dtype)


def _clipped_gelu(activation: Any, z: Tensor) -> Tensor:
    free = _gelu(z)
    whole = z * free
    clipped = whole.clamp(activation.min, activation.max)
    return torch.where(clipped == whole, free, clipped / z)


def _xielu(activation: Any, z: Tensor) -> Tensor:
    # α (expm1(z) − z) + β z on the left. As transformers writes it, with expm1(min(z, −1e-6)), it is −1e-6 α at 0 and
    # has no limit there: the limit is that of what it stands for.
    numbers: Any = [tensor_of(activation, name) for name in ("alpha_p", "alpha_n", "beta", "eps")]
    alpha_p, alpha_n, beta, eps = numbers
    alpha_p, alpha_n = softplus(alpha_p), beta + softplus(alpha_n)
    left = alpha_n * (torch.expm1(torch.minimum(z, eps)) / z - 1) + beta
    return torch.where(z > 0, alpha_p * z + beta, torch.where(z == 0, beta, left)).to(z.dtype)


_RATIOS: dict[str, Callable[[Tensor], Tensor]] = {
    "SiLU": torch.sigmoid,
    "SiLUActivation": torch.sigmoid,
    "GELU": _gelu,
    "GELUActivation": _gelu,
    "GELUTanh": _gelu_tanh,
    "NewGELUActivation": _gelu_tanh,
    "AccurateGELUActivation": _gelu_tanh,
    "FastGELUActivation": _fast_gelu,
    "QuickGELUActivation": lambda z: torch.sigmoid(1.702 * z),
    "Hardswish": lambda z: relu6(z + 3) / 6,
    "LinearActivation": torch.ones_like,
    "MishActivation": lambda z: torch.tanh(softplus(z)),
    "ReLU": lambda z: (z > 0).to(z.dtype),
    "ReLU6": _relu6,
    "ReLUSquaredActivation": torch.relu,
    "Tanh": _tanh,
}

_RATIOS_OF_MODULES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "ClippedGELUActivation": _clipped_gelu,
    "LeakyReLU": _leaky_relu,
    "PReLU": _prelu,
    "XIELUActivation": _xielu,
}
"""Of those with numbers of their own."""

_NOT_ZERO_AT_ZERO = ("LaplaceActivation", "Sigmoid", "SqrtSoftplusActivation")


def ratio(activation: nn.Module, z: Tensor) -> Tensor:
    """Return act(z)/z elementwise.

    Raises
    ------
    UnsupportedModelError
        If the activation has no known ratio, or none with a limit at 0.
    """
    name = type(activation).__name__
    if name == "GELU" and getattr(activation, "approximate", "none") == "tanh":
        name = "GELUTanh"
    if name in _RATIOS:
        return _RATIOS[name](z)
    if name in _RATIOS_OF_MODULES:
        return _RATIOS_OF_MODULES[name](activation, z)
    if name in _NOT_ZERO_AT_ZERO:
        raise UnsupportedModelError(
            f"{name} is not 0 at z = 0, so that act(z)/z has no limit there; in a gated MLP, freeze='gate' needs none"
        )
    known = ", ".join(sorted((*_RATIOS, *_RATIOS_OF_MODULES)))
    raise UnsupportedModelError(f"no ratio act(z)/z is known for the activation {name}; known: {known}")

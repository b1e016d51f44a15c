"""A dtype means that dtype: no autocast of the caller's, no rounded products, no float32 inside a float64 model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detjac_lanczos.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def in_own_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that it runs without gradients and outside any autocast of the caller's."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return run


_ROUNDED = 1e-5
"""Relative error of a float32 product above which its factors were rounded: TF32 gives 3e-4, bfloat16 2e-3."""


def require_exact_products(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse to call float32 what torch is told to multiply in less (TF32, bfloat16).

    Raises
    ------
    InputError
        If a float32 product on this device is not one; measured once for each setting of torch's.
    """
    if dtype is torch.float32 and device.type != "meta":
        backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
        if not _products_are_exact(device.type, backend.matmul.fp32_precision):
            raise InputError(
                "torch is set to round the factors of float32 products; undo it by "
                "torch.set_float32_matmul_precision('highest'), or load the model in bfloat16"
            )


@cache
def _products_are_exact(device: str, setting: str) -> bool:
    x, w = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    exact = x.double() @ w.double().T
    found = (x.to(device) @ w.to(device).T).cpu()
    return bool((found - exact).norm() <= _ROUNDED * exact.norm())


class LiftToFloat64(TorchFunctionMode):
    """Turn ``.float()``, ``.to(torch.float32)``, ``.type(…)`` and ``dtype=torch.float32`` into float64 while active.

    Norms, softmax, rotary embeddings and routers of transformers round to float32 whatever the model's dtype; in a
    float64 model that costs nine digits.
    """

    lifts = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` with float32 requests replaced."""
        if not self.lifts:
            return func(*args, **(kwargs or {}))
        lifted = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        if func is Tensor.float:
            return args[0].double()
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **lifted)


def lifted_to_float64(function: Callable[[], R]) -> R:
    """Call a function under `LiftToFloat64`; one that an interrupt leaves in the thread lifts nothing any more."""
    mode = LiftToFloat64()
    try:
        with mode:
            return function()
    finally:
        mode.lifts = False

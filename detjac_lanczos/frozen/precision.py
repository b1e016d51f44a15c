"""A dtype means that dtype: no autocast of the caller's, no rounding to float32 inside a float64 model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


class LiftToFloat64(TorchFunctionMode):
    """Turn ``.float()``, ``.to(torch.float32)``, ``.type(…)`` and ``dtype=torch.float32`` into float64 while active.

    Norms, softmax, rotary embeddings and routers of transformers round to float32 whatever the model's dtype; in a
    float64 model that costs nine digits.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` with float32 requests replaced."""
        lifted = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        if func is Tensor.float:
            return args[0].double()
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **lifted)

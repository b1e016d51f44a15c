"""Out of a caller's `torch.inference_mode`: what is made there could never be differentiated."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that what it makes are ordinary tensors, as under ``torch.inference_mode(False)``.

    That one is Python around a guard in C: an interrupt in it keeps the guard open, which puts the thread back to what
    was set when it was opened as late as the traceback is forgotten. The guard alone is closed in any case.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch._C._InferenceMode(False):
            return function(*args, **kwargs)

    return run

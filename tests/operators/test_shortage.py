"""A capture that memory runs out in says so, wherever that is: it is no fault of the model's."""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import detjac_lanczos as dl
from detjac_lanczos.errors import ModelError
from detjac_lanczos.frozen.capture import own_logits
from detjac_lanczos.frozen.padding import rows_of
from detjac_lanczos.operators.self_check import _passed
from tests import tiny_models
from tests.tiny_models.dense import llama
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT: dict[str, tuple[tuple[Any, ...], str]] = {
    "torch": ((RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried"), "there is too little memory"),
    "Python": ((MemoryError,), "there is too little memory"),
    "descriptors": ((OSError, errno.EMFILE, os.strerror(errno.EMFILE)), "too many files are open"),
}
"""What is raised, and what is said of it."""


class Short(TorchDispatchMode):
    """Raise an error in one operation of torch, the ``stop``-th of all that run meanwhile."""

    def __init__(self, error: Exception, stop: int | None = None) -> None:
        super().__init__()
        self.error, self.stop, self.count = error, stop, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, or raise."""
        self.count += 1
        if self.count == self.stop:
            raise self.error
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], Any]) -> int:
    with Short(MemoryError()) as counted:
        run()
    return counted.count


@pytest.mark.parametrize("what", SHORT)
@pytest.mark.parametrize("name", ["Llama", "StableLM"])
def test_what_runs_out_is_said_and_not_the_models_fault(name: str, what: str) -> None:
    (kind, *args), said = SHORT[what]
    loaded = tiny_models.loaded(llama(torch.float32) if name == "Llama" else UNDECLARED[name](torch.float32))
    ids = tiny_models.prompt_ids(3)

    def detach() -> None:
        _passed.clear()  # so that each is checked in full
        dl.detach(loaded, input_ids=ids)

    detach()  # what is done once in a process is behind it
    count = operations(detach)
    for stop in range(1, count, count // 20):
        with pytest.raises(ModelError) as caught, Short(kind(*args), stop):
            detach()
        assert type(caught.value) is ModelError, stop
        assert str(caught.value).startswith(f"cannot freeze the network: {said} ("), stop


def test_no_later_pass_is_called_failing_for_it() -> None:
    network = dl.detach(tiny_models.loaded(llama(torch.float32)), input_ids=tiny_models.prompt_ids(3))
    count = operations(lambda: own_logits(network.model, network.prompts))
    for stop in range(1, count, count // 20):
        with pytest.raises(MemoryError), Short(MemoryError(), stop):
            own_logits(network.model, network.prompts)


def test_no_rows_are_called_misshapen_for_it() -> None:
    with pytest.raises(RuntimeError, match="allocate memory"), Short(RuntimeError("can't allocate memory"), 1):
        rows_of(np.arange(3.0), axes=1)

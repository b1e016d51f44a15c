"""What automatic differentiation saves of offloaded weights: where to read them again, not the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detjac_lanczos.models.offloaded import OffloadedModule, offloaded


@dataclass(frozen=True)
class _Elsewhere:
    """A view of a tensor of an offloaded module."""

    source: OffloadedModule
    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def forget_gradients(copied: nn.Module) -> None:
    """Have the offloaded parameters of a structural copy ask for no gradients: a graph would hold what asks for one."""
    for module in copied.modules():
        if offloaded(module) is not None:
            for name, value in module._parameters.items():
                if value is not None and value.is_meta:
                    module._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)


@contextmanager
def weights_read_again(model: nn.Module) -> Iterator[None]:
    """Have a graph that is recorded here hold no weights that accelerate offloads: in reverse each is read once more.

    Without this all of a model's weights would be held from the pass that records them to the last use of the graph.
    """
    sources = [source for module in model.modules() if (source := offloaded(module)) is not None]

    def pack(saved: Tensor) -> Tensor | _Elsewhere:
        for source in sources:
            for name, value in source.module._parameters.items():
                if value is not None and not value.is_meta and _begin(value) == _begin(saved):
                    return _Elsewhere(source, name, saved.shape, saved.stride(), int(saved.storage_offset()))
        return saved

    def unpack(saved: Tensor | _Elsewhere) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        value = saved.source.tensor(saved.name).detach()
        return value.as_strided(saved.size, saved.stride, saved.offset)

    if not sources:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _begin(tensor: Tensor) -> int:
    """Return where the storage of a tensor begins."""
    return tensor.data_ptr() - int(tensor.storage_offset()) * tensor.itemsize

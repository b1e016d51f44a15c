"""Whether a model still is the very one that was frozen, by a look at all that maps may be made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

from detjac_lanczos.models.adapters import adapter_state
from detjac_lanczos.models.offloaded import kept_in_memory
from detjac_lanczos.models.unmoved import Unmoved, moved, weights_in_use


class Unchanged:
    """A model as it is now: its weights, packed and offloaded ones too, and what its adapters do.

    Stricter than the products of a network are, which use only what its maps hold: a change refuses that would be
    without effect. Buffers that no checkpoint holds are left out, as models write to them in a forward pass.

    Parameters
    ----------
    name : str
        Of the model.
    model : torch.nn.Module
    """

    def __init__(self, name: str, model: nn.Module) -> None:
        self._name, self._model = name, model
        self._tensors, self._adapters = list(lasting_tensors(model, weights_in_use(model))), list(adapter_state(model))
        self._unmoved = Unmoved(name, chain.from_iterable(map(stored_in, self._tensors)))
        self._looks = [look(tensor) for tensor in self._tensors]

    def require(self) -> None:
        """Refuse what would be made of the model if it has changed.

        Raises
        ------
        ModelError
            If it has.
        """
        if list(adapter_state(self._model)) != self._adapters:
            raise moved(self._name, "given other adapters")
        self._unmoved.require()
        tensors = list(lasting_tensors(self._model, weights_in_use(self._model)))
        if len(tensors) != len(self._tensors) or any(a is not b for a, b in zip(tensors, self._tensors, strict=True)):
            raise moved(self._name, "replaced")
        if [look(tensor) for tensor in tensors] != self._looks:
            raise moved(self._name, "written to")


def lasting_tensors(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    """Yield parameters and the lasting buffers of a model: of offloaded ones those in host memory.

    Each pass makes others of these. Those on disk are left out.
    """
    yield from (parameter for parameter in parameters if not parameter.is_meta)
    for module in model.modules():
        yield from kept_in_memory(module)
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta and name not in module._non_persistent_buffers_set:
                yield buffer


def stored_in(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors of codes and scales that a packed weight of bitsandbytes is, others as they come."""
    if not type(tensor).__module__.startswith("bitsandbytes."):
        yield tensor
        return
    codes = tensor.detach().as_subclass(Tensor)
    yield codes
    held = list(vars(tensor).values())
    for value in held:
        if isinstance(value, Tensor):
            if value.is_meta or value.data_ptr() != codes.data_ptr():  # else the codes again, with another counter
                yield value
        elif type(value).__name__ == "QuantState":
            held += vars(value).values()


def look(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells a tensor from what was written to it, or put in its place, without reading it.

    Scales of 4 bits lie beside their codes, in a state that others may take the place of.
    """
    version = None if tensor.is_inference() else tensor._version
    scales = _scales_of(getattr(tensor, "quant_state", None))
    try:
        return version, tensor.data_ptr(), *scales
    except RuntimeError:  # a wrapper around other tensors
        return version, *scales


def _scales_of(state: Any) -> Iterator[int]:
    """Yield where the tensors of a quantisation state lie, but for those of offloaded weights, which lie nowhere."""
    for value in vars(state).values() if type(state).__name__ == "QuantState" else ():
        if isinstance(value, Tensor) and not value.is_meta:
            yield value.data_ptr()
        else:
            yield from _scales_of(value)

"""A second device on a machine that has none: tensors stay where they are, and are held to what devices demand.

While `Devices` is active every tensor has a place. ``to`` changes it; functions give their results the place of their
arguments, and refuse arguments (other than numbers) of two places.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)


class Devices(TorchFunctionMode):
    """Two places in one memory; ``transfers`` notes what changed its place: (from, to, bytes) of each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Any = WeakIdKeyDictionary()
        self._last_at: dict[int, torch.device] = {}
        self.transfers: list[tuple[torch.device, torch.device, int]] = []

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Say where a tensor lies."""
        self.places[tensor] = self._last_at[_address(tensor)] = device
        return tensor

    def place_of(self, tensor: Tensor) -> torch.device:
        """Return where a tensor lies; a parameter, which no function makes, is where the tensor inside it is."""
        if tensor not in self.places and isinstance(tensor, Parameter):
            return self._last_at.get(_address(tensor), FIRST)
        return self.places.get(tensor, FIRST)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "__get__":
            return self._property(func, args)
        if func is Tensor.__deepcopy__:
            return self.put(func(*args), self.place_of(args[0]))
        wanted = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.device)]
        tensors = list(_tensors((args, kwargs)))
        if func is Tensor.to:
            wanted += [self.place_of(value) for value in args[1:] if isinstance(value, Tensor)]
            place = wanted[0] if wanted else self.place_of(args[0])
            if place != self.place_of(args[0]):
                self.transfers.append((self.place_of(args[0]), place, args[0].nbytes))
            else:  # it is there: no copy, whatever torch makes of a second device that is none
                args = [value for value in args if not isinstance(value, torch.device)]
                kwargs.pop("device", None)
            result = func(*args, **kwargs) if len(args) > 1 or kwargs.keys() - {"non_blocking"} else args[0]
            return self.put(result.clone() if place != self.place_of(result) else result, place)
        places = {self.place_of(tensor) for tensor in tensors if tensor.ndim}
        if len(places) > 1:
            raise RuntimeError(f"{func} was given tensors on {places}")
        place = wanted[0] if wanted else next(iter(places), FIRST)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self.put(tensor, place)
        return result

    def _property(self, func: Any, args: Sequence[Any]) -> Any:
        value = func(*args)
        if isinstance(value, torch.device):
            return self.place_of(args[0])
        return self.put(value, self.place_of(args[0])) if isinstance(value, Tensor) else value


def _address(tensor: Tensor) -> int:
    """Return where a tensor's values lie; those of vmap lie nowhere of their own."""
    with torch._C.DisableTorchFunction():
        return 0 if tensor.is_meta or is_batchedtensor(tensor) else tensor.data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)

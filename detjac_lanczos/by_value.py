"""Results that cross to another process by value, with no file descriptor held for each tensor."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from torch import Tensor

Kind = TypeVar("Kind", bound=type)


def sent_by_value(*apart: str) -> Callable[[Kind], Kind]:
    """Decorate a class whose instances pools and queues of processes send as plain pickles.

    torch sends every tensor as shared memory, which costs the receiver a descriptor for as long as the tensor lives:
    a process that collects results would run out of them. Copies and pickles made otherwise are as they were.

    Parameters
    ----------
    apart : str
        Attributes whose object, or tensor, many results share: within one message it is sent once.
    """

    def reduce(held: Any) -> tuple[Any, ...]:
        own = {name: value for name, value in vars(held).items() if name not in apart}
        return _restored, (type(held), pickle.dumps(own), {name: _once(getattr(held, name)) for name in apart})

    def register(kind: Kind) -> Kind:
        ForkingPickler.register(kind, reduce)
        return kind

    return register


class _Shared:
    """Stands for a tensor of many results: the pickler sends the bytes where it meets it first, a reference then."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


ForkingPickler.register(_Shared, lambda shared: (pickle.loads, (pickle.dumps(shared.tensor),)))

# By the id of the tensor, which each keeps alive; it goes with the last pickler that has met it.
_SHARED: WeakValueDictionary[int, _Shared] = WeakValueDictionary()


def _once(value: Any) -> Any:
    return _SHARED.setdefault(id(value), _Shared(value)) if isinstance(value, Tensor) else value


def _restored(kind: type, own: bytes, apart: dict[str, Any]) -> Any:
    held: Any = object.__new__(kind)
    vars(held).update(pickle.loads(own) | apart)
    return held

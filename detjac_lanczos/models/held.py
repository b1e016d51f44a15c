"""Values that are not where they are used: brought there, and held as long as somebody needs them.

Whoever holds them is who has a reference: of holders that are counted, an interrupt may leave one.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import ref

import torch

Values = TypeVar("Values")
Here = TypeVar("Here")


class Held(ABC, Generic[Values, Here]):
    """Values elsewhere, and what is made of them on a device.

    Attributes
    ----------
    device : torch.device
        Where they are used.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._placed_here: ref[Here] | None = None
        self._lock = threading.Lock()

    def read(self) -> Values | None:
        """Read into host memory, ready to be moved on: what a thread can do ahead; None if they are on the device."""
        return None if self._here is not None else self._read()

    @property
    def _here(self) -> Here | None:
        return None if self._placed_here is None else self._placed_here()

    @contextmanager
    def held(self, values: Values | None = None) -> Iterator[Here]:
        """Give what is made of the values on the device; whoever asks meanwhile gets the same.

        Parameters
        ----------
        values : optional
            What `read` gave; read now by default.
        """
        with self._lock:
            here = self._here
            if here is None:
                here = self._placed(self._read() if values is None else values)
                self._placed_here = ref(here)
        del values
        yield here

    @abstractmethod
    def _read(self) -> Values:
        """Read the values into host memory."""

    @abstractmethod
    def _placed(self, values: Values) -> Here:
        """Make of them what is used on the device."""

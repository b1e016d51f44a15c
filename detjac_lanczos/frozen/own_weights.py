"""Which weights of its model a frozen network was made of: its maps hold them in place, and must find them so."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from detjac_lanczos.frozen.maps import Map
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.unmoved import Unmoved, is_plain, moved


class OwnWeights:
    """The weights in the maps of a network, part by part; shared with what ``replace`` makes of it."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[frozenset[int], Unmoved]] = {}

    def of(self, part: str) -> Unmoved:
        """Return the weights of a part as they were when its maps were first made."""
        return self._parts[part][1]

    def join(self, part: str, loaded: LoadedModel, maps: Iterable[Map]) -> None:
        """Take the weights in the maps of a part, or see that they are those of the maps that were first made.

        Parameters
        ----------
        part : str
        loaded : LoadedModel
            Whose parameters the maps may hold.
        maps : iterable of maps
            Just made of the model.

        Raises
        ------
        ModelError
            If it was made before, and of other parameters; or these were written to since.
        """
        held = _parameters_in(loaded.model, maps)
        places = frozenset(p.data_ptr() for p in held)
        if part not in self._parts:
            self._parts[part] = places, Unmoved(loaded.name, held)
        known, unmoved = self._parts[part]
        if not places <= known or bool(places) is not bool(known):
            raise moved(loaded.name, "replaced")
        unmoved.require_unwritten()


def _parameters_in(model: nn.Module, maps: Iterable[Map]) -> list[Tensor]:
    """Return the parameters that maps hold, whole or in part, as tensors that stay where the maps have them."""
    parameters = sorted((p.detach() for p in model.parameters() if is_plain(p)), key=Tensor.data_ptr)
    starts = [p.data_ptr() for p in parameters]
    found: dict[int, Tensor] = {}
    for tensor in _tensors(tuple(maps)):
        index = bisect_right(starts, tensor.data_ptr()) - 1
        if index >= 0 and tensor.data_ptr() < starts[index] + parameters[index].nbytes:
            found[index] = parameters[index]
    return list(found.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of maps and of the weights and factors in them."""
    if isinstance(value, Tensor):
        if is_plain(value):
            yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
    elif type(value).__module__.startswith("detjac_lanczos.") and not isinstance(value, nn.Module | Held):
        for item in vars(value).values():
            yield from _tensors(item)

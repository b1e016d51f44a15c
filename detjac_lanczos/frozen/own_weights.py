"""Which weights of its model a frozen network was made of: its maps hold them in place, and must find them so."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from detjac_lanczos.frozen.maps import Map
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.unchanged import Unchanged
from detjac_lanczos.models.unmoved import Unmoved, is_plain


class OwnWeights:
    """The weights in the maps of a network, part by part; shared with what ``replace`` makes of it."""

    def __init__(self) -> None:
        self._parts: dict[str, Unmoved] = {}
        self._model: Unchanged | None = None

    def begin(self, loaded: LoadedModel) -> None:
        """Look at the model of a network that was just captured or read back; once, whatever is made of it later."""
        if self._model is None:
            self._model = Unchanged(loaded.name, loaded.model)

    def require_model(self) -> None:
        """Refuse to make maps of a model that is no longer the one of the pass.

        Raises
        ------
        ModelError
            If it has changed.
        """
        if self._model is not None:
            self._model.require()

    def of(self, part: str) -> Unmoved:
        """Return the weights of a part as they were when its maps were first made."""
        return self._parts[part]

    def join(self, part: str, loaded: LoadedModel, maps: Iterable[Map]) -> None:
        """Take the weights in the maps of a part, if the model that they were made of still is the one of the pass.

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
            If the model has changed since.
        """
        self.require_model()
        if part not in self._parts:
            self._parts[part] = Unmoved(loaded.name, _parameters_in(loaded.model, maps))


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

"""What of its model a frozen network is made of: the numbers of its pass, and weights that must lie as they lay."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

from detjac_lanczos.frozen.copy_at_rest import copy_at_rest
from detjac_lanczos.frozen.maps import Map
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.models.bitsandbytes import leave_weights_alone
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.unchanged import Unchanged, stored_in
from detjac_lanczos.models.unmoved import Unmoved, is_plain

_OURS = ("detjac_lanczos.", "detjac_kernels.")


class OwnWeights:
    """The weights in the maps of a network, part by part; shared with what ``replace`` makes of it.

    Attributes
    ----------
    model : torch.nn.Module
        What maps are made of, whenever that is: a copy at rest, which shares every tensor of the caller's model, and
        has the configuration and the numbers (multipliers, heads, softcaps) that it had in the pass.
    """

    model: Any = None

    def __init__(self) -> None:
        self._parts: dict[str, Unmoved] = {}

    def begin(self, loaded: LoadedModel) -> None:
        """Look at the model of a network that was just captured or read back; once, whatever is made of it later.

        Raises
        ------
        UnsupportedModelError
            If the weight of a packed module is no packed one.
        """
        if self.model is None:
            self._loaded, self._unchanged = loaded, Unchanged(loaded.name, loaded.model)
            self.model = copy_at_rest(loaded.model)
            for name, module in self.model.named_modules():
                leave_weights_alone(module, name)  # whatever a pass of the caller's moves elsewhere

    def require_model(self) -> None:
        """Refuse to make maps of weights that are no longer those of the pass.

        Raises
        ------
        ModelError
            If they, or adapters, have changed.
        """
        self._unchanged.require()

    def of(self, part: str) -> Unmoved:
        """Return the weights of a part as they were when its maps were first made."""
        return self._parts[part]

    def join(self, part: str, maps: Iterable[Map]) -> None:
        """Take the weights in the maps of a part, just made of `model` as `require_model` allowed."""
        if part not in self._parts:
            self._parts[part] = Unmoved(self._loaded.name, _parameters_in(self._loaded.model, maps))


def _parameters_in(model: nn.Module, maps: Iterable[Map]) -> list[Tensor]:
    """Return the parameters that maps hold, whole or in part, as tensors that stay where the maps have them.

    Of packed ones of bitsandbytes, that are their codes and scales; those of other formats are not found.
    """
    stored = (tensor.detach() for tensor in chain.from_iterable(map(stored_in, model.parameters())))
    parameters = sorted((tensor for tensor in stored if is_plain(tensor)), key=Tensor.data_ptr)
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
    elif type(value).__module__.startswith(_OURS) and not isinstance(value, nn.Module | Held):
        for item in vars(value).values():
            yield from _tensors(item)

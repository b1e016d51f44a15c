"""Whether weights still are what they were when something was made of them, by a look that costs no sweep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import ModelError
from detjac_lanczos.models.adapters import is_adapted, keeps_copies

_AS_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Unmoved:
    """Weights as they are now, to be held against what they are later: where they lie, how often they were written to.

    Writing through ``.data``, which torch does not count, is seen by one entry of each. Those on the meta device and
    subclasses of tensors, such as packed weights, are left out.

    Parameters
    ----------
    name : str
        Of the model.
    weights : iterable of Tensor
        Kept as long as this is.
    """

    def __init__(self, name: str, weights: Iterable[Tensor]) -> None:
        self._name = name
        self._weights = [w for w in weights if is_plain(w)]
        self._counted = [w for w in self._weights if not w.is_inference()]
        self._places, self._versions = self._places_now(), self._versions_now()
        self._entries = [(entries, torch.cat(entries)) for entries in middle_entries(self._weights)]

    def require_unwritten(self) -> None:
        """Refuse what uses the weights where they lay if they were written to.

        Raises
        ------
        ModelError
            If they were.
        """
        if self._versions_now() != self._versions or not all(
            torch.equal(torch.cat(entries), before) for entries, before in self._entries
        ):
            raise moved(self._name, "written to")

    def require(self) -> None:
        """Refuse what uses the tensors themselves if they were written to or hold other memory, as after ``w.data =``.

        Raises
        ------
        ModelError
            If they were, or do.
        """
        self.require_unwritten()
        if self._places_now() != self._places:
            raise moved(self._name, "replaced")

    def _places_now(self) -> list[int]:
        return [w.data_ptr() for w in self._weights]

    def _versions_now(self) -> list[int]:
        return [w._version for w in self._counted]


def middle_entries(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return one entry of each of some plain weights in place, read as an integer: in a list for each kind."""
    by_kind: dict[Any, list[Tensor]] = {}
    for w in weights:
        entry = w.detach()[tuple(size // 2 for size in w.shape)].view(1).view(_AS_INTEGERS[w.itemsize])
        by_kind.setdefault((entry.dtype, entry.device), []).append(entry)
    return list(by_kind.values())


def is_plain(weight: Tensor) -> bool:
    """Tell whether a weight has values that lie where torch says."""
    return type(weight) in (nn.Parameter, Tensor) and not weight.is_meta and weight.numel() > 0


def moved(name: str, how: str) -> ModelError:
    """Return the error of a network whose model has other weights than when it was frozen."""
    return ModelError(f"the weights of {name} were {how} after it was frozen on the prompt; detach again")


def weights_in_use(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a model, but those of adapters that do not run: they may be trained meanwhile."""
    resting = {id(p) for module in model.modules() for p in _of_resting_adapters(module)}
    return (p for p in model.parameters() if id(p) not in resting)


def _of_resting_adapters(layer: Any) -> Iterator[nn.Parameter]:
    if not is_adapted(layer) and not keeps_copies(layer):
        return
    active = [] if layer.disable_adapters or getattr(layer, "merged", False) else layer.active_adapters
    for held in layer._modules.values():
        if isinstance(held, nn.ModuleDict | nn.ParameterDict):
            for adapter, part in held.items():
                if adapter not in active:
                    yield from part.parameters() if isinstance(part, nn.Module) else [part]

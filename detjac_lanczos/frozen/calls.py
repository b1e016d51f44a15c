"""What enters and what leaves a module, read off what its hooks are given."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a module's call; of those by name the hidden states, where they are among them."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def leaving(out: Any) -> Any:
    """Return the first value that a module gave."""
    return out if isinstance(out, Tensor) else out[0]


class Watch:
    """Rows that enter and leave modules, by name: one tensor (positions, width) for every call.

    Attributes
    ----------
    rows : dict of str to list of Tensor
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[Tensor]] = {}

    def entering(self, module: nn.Module, name: str) -> None:
        """Keep what enters a module from now on."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(name, entering(args, kwargs).flatten(0, -2))

        module.register_forward_pre_hook(hook, with_kwargs=True)

    def leaving(self, module: nn.Module, name: str, rows: slice = slice(None)) -> RemovableHandle:
        """Keep what leaves a module, or some rows of it, until the handle is removed."""

        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            self._keep(name, leaving(out).flatten(0, -2)[rows])

        return module.register_forward_hook(hook)

    def calls(self, name: str) -> int:
        """Return how many calls were seen."""
        return len(self.rows.get(name, ()))

    def taken(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each name and its rows, all calls one after another, and forget them."""
        for name in list(self.rows):
            parts = self.rows.pop(name)
            yield name, parts[0] if len(parts) == 1 else torch.cat(parts)

    def _keep(self, name: str, rows: Tensor) -> None:
        self.rows.setdefault(name, []).append(rows.clone())

"""What enters and what leaves a module, read off what its hooks are given."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a module's call; of those by name the hidden states, where they are among them."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))


def leaving(out: Any) -> Any:
    """Return the first value that a module gave."""
    return out if isinstance(out, Tensor) else out[0]

"""Hooks that a caller has set on all modules of torch: they have a part in every pass, also of a structural copy."""

from __future__ import annotations

from typing import Any

from torch.nn.modules import module as _modules

from detjac_lanczos.errors import ModelError

_TABLES = ("_global_forward_pre_hooks", "_global_forward_hooks")


class HooksOnAll:
    """The forward hooks on all modules as they are now, but those of torch itself, which only watch."""

    def __init__(self) -> None:
        self._hooks = hooks_on_all()

    def require_same(self, name: str) -> None:
        """Refuse a pass that has other hooks than the one that was frozen.

        Raises
        ------
        ModelError
            If they are others.
        """
        hooks = hooks_on_all()
        if len(hooks) != len(self._hooks) or any(a is not b for a, b in zip(hooks, self._hooks, strict=True)):
            raise ModelError(
                f"there are other forward hooks on all modules than when {name} was frozen on the prompt; undo that "
                "(torch.nn.modules.module.register_module_forward_hook gave what removes one), or detach again"
            )


def hooks_on_all() -> list[Any]:
    """Return the forward hooks on all modules as they are now, but those of torch itself."""
    found = [hook for table in _TABLES for hook in getattr(_modules, table, {}).values()]
    return [hook for hook in found if not str(getattr(hook, "__module__", "")).startswith("torch.")]

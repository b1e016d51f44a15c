"""How a named model was loaded, as data: what has to be said again to load it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detjac_lanczos.errors import InputError

_NAMED, _PLACED = ("revision", "subfolder"), ("device_map", "max_memory", "offload_folder")
"""Options of ``from_pretrained`` that are recorded: what a name stands for, where weights lie. No token: a secret."""


def loading_of(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a model was loaded with, where they differ from the defaults.

    Parameters
    ----------
    model : torch.nn.Module
        As it was loaded; of one from the hub, the commit is recorded too.
    options : mapping
        Those of ``from_pretrained``.

    Returns
    -------
    dict
        JSON data.
    """
    found = {name: _plain(options[name]) for name in (*_NAMED, *_PLACED) if options.get(name) is not None}
    commit = getattr(model.config, "_commit_hash", None)
    if commit is not None and commit != found.get("revision"):
        found["commit"] = commit
    return found | ({"trust_remote_code": True} if options["trust_remote_code"] else {})


def options_from(loading: Mapping[str, Any], *, moved: bool, placed: bool) -> dict[str, Any]:
    """Return the options of `load_model` that repeat a recorded loading.

    Parameters
    ----------
    loading : mapping
        What `loading_of` returned.
    moved : bool
        Whether the model now comes from elsewhere, where the recorded revision names nothing.
    placed : bool
        Whether its device is given anew.

    Raises
    ------
    InputError
        If the model was loaded with ``trust_remote_code``: a record cannot ask for its code to be run.
    """
    if loading.get("trust_remote_code"):
        raise InputError(
            "the model of this run was loaded with trust_remote_code, and a record cannot ask for its code to be run; "
            "if you trust it, give load_model(name, trust_remote_code=True) yourself"
        )
    left_out = ("commit", *(_NAMED if moved else ()), *(_PLACED if placed else ()))
    options = {name: value for name, value in loading.items() if name not in left_out}
    if "max_memory" in options:  # JSON knows devices by text alone
        options["max_memory"] = {int(k) if k.isdigit() else k: size for k, size in options["max_memory"].items()}
    return options


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if isinstance(value, int | str) else str(value)

"""What a model computes with beside its weights, to be held against what it is later: code, numbers and structure."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any
from weakref import ref

from torch import nn

from detjac_lanczos.frozen.hooks_on_all import hooks_on_all

_OF_EVERY_MODULE = {*vars(nn.Module())}
"""Attributes that are looked at by themselves, or have no part in a pass that only evaluates, such as `training`."""

_NUMBERS = {bool, int, float, str}


def what_runs(model: nn.Module) -> list[Any]:
    """Return what is equal later only if the model still computes what it does now, whatever its weights are.

    Of every module that is its place, its class, its hooks, which parameters it lacks, and the functions and numbers
    set on it; of every class its methods; the configurations; and hooks on all modules. It takes less than a
    millisecond for 400 modules, and keeps none of them alive: functions are held weakly, so that none is taken for
    another one that later lies in its place.
    """
    found: list[Any] = [_held(hook) for hook in hooks_on_all()]
    classes: dict[type, None] = {}
    configs: dict[int, Any] = {}

    def walk(module: nn.Module) -> None:
        own = module.__dict__
        kind = type(module)
        classes[kind] = None
        found.append(ref(kind))
        for name in own.keys() - _OF_EVERY_MODULE:
            value = own[name]
            if type(value) in _NUMBERS:
                found.append((name, value))
            elif name == "config":
                configs[id(value)] = value
            elif callable(value):
                found.append((name, _held(value)))
        for hooks in (own["_forward_pre_hooks"], own["_forward_hooks"]):
            if hooks:
                found.extend(map(_held, hooks.values()))
        found.extend([name for name, value in own["_parameters"].items() if value is None])
        found.append(len(own["_modules"]))
        for name, child in own["_modules"].items():
            found.append(name)
            if child is not None:
                walk(child)

    walk(model)
    for ancestor in {ancestor: None for kind in classes for ancestor in kind.__mro__}:
        found += _methods(ancestor)
    found += [repr(vars(config)) for config in configs.values()]
    return found


def _methods(kind: type) -> Iterator[Any]:
    if kind is not nn.Module:
        for name, value in vars(kind).items():
            if isinstance(value, FunctionType):
                yield from (name, ref(value))


def _held(code: Any) -> Any:
    """Return a weak reference, or, to what takes none, something that is equal to nothing later."""
    try:
        return ref(code)
    except TypeError:
        return object()

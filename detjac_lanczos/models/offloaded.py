"""Modules whose tensors accelerate keeps elsewhere until they run: on disk, or in host memory beside a device.

Such a module's parameters are on the meta device, and its hook has a map from their names to their values. Values are
read from that map for the moment of use, or held while a sweep is at their block; nothing is written to the module.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import ModelError, UnsupportedModelError
from detjac_lanczos.models.alignment import aligned
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.side_stream import beside, used_here

_PAGE = 4096


class OffloadedModule(Held[dict[str, Tensor], nn.Module]):
    """One module and the map that holds its own tensors.

    Attributes
    ----------
    module : torch.nn.Module
        Of the caller's model or of a copy, its tensors on the meta device.
    device : torch.device
        Where it runs.
    """

    def __init__(self, module: nn.Module, hook: Any) -> None:
        super().__init__(_numbered(torch.device(hook.execution_device)))
        self.module = module
        self._map: Mapping[str, Tensor] = hook.weights_map

    def tensor(self, name: str) -> Tensor:
        """Read one tensor of the module, of the type that the module has it in, to where it runs."""
        return self._value(name).to(self.device)

    def _read(self) -> dict[str, Tensor]:
        """On the CPU this faults mapped pages in; for other devices values are put into pinned memory."""
        values = {name: self._value(name) for name in self._names}
        if self.device.type == "cpu":
            for value in values.values():
                if value.is_contiguous():
                    value.view(-1).view(torch.uint8)[::_PAGE].sum()
            return values
        return {name: value if value.is_pinned() else value.pin_memory() for name, value in values.items()}

    @property
    def _names(self) -> list[str]:
        return [name for name, value in _own_tensors(self.module).items() if value.is_meta]

    def _value(self, name: str) -> Tensor:
        try:
            value = self._map[name]
        except OSError as error:
            raise ModelError(
                f"a weight that accelerate put on disk cannot be read ({error}); load the model again"
            ) from None
        own = _own_tensors(self.module).get(name)
        value = value.to(own.dtype) if own is not None and own.is_floating_point() else value
        return aligned(value) if value.dtype is torch.float32 and self.device.type == "cpu" else value

    def _placed(self, values: dict[str, Tensor]) -> nn.Module:
        from accelerate.utils import set_module_tensor_to_device

        here: Any = copy.copy(self.module)
        here._parameters, here._buffers = dict(self.module._parameters), dict(self.module._buffers)
        here.__dict__.pop("_hf_hook", None)
        with torch.no_grad(), beside(self.device):
            for name, value in values.items():
                set_module_tensor_to_device(here, name, self.device, value=value, non_blocking=True, clear_cache=False)
        used_here(_own_tensors(here).values())
        return here


_known: WeakValueDictionary[int, OffloadedModule] = WeakValueDictionary()
"""By the id of a module: whoever uses one at a time shares its values. The entry keeps its module, so ids are its."""


def offloaded(module: nn.Module) -> OffloadedModule | None:
    """Return what is known of a module whose own tensors accelerate offloads; None for any other."""
    for hook in _hooks(module):
        if getattr(hook, "offload", False) and hook.weights_map is not None:
            known = _known.get(id(module))
            if known is None:
                known = _known[id(module)] = OffloadedModule(module, hook)
            return known
    return None


@contextmanager
def with_values(module: nn.Module) -> Iterator[nn.Module]:
    """Give a module with its own tensors where it runs, as long as they are needed."""
    source = offloaded(module)
    if source is None:
        yield module
    else:
        with source.held() as here:
            yield here


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """Return a tensor of a module, in place or read from where accelerate keeps it; None where it has none."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor):
        return None
    source = offloaded(module) if value.is_meta else None
    return value.detach() if source is None else source.tensor(name).detach()


def stored_value(model: nn.Module, name: str) -> Tensor | None:
    """Read a tensor that is on the meta device by its full name, for a look at it; None if it is kept nowhere."""
    path, _, own = name.rpartition(".")
    try:
        source = offloaded(model.get_submodule(path))
    except AttributeError:
        return None
    return None if source is None or own not in source._names else source._value(own)


def execution_device(model: nn.Module) -> torch.device:
    """Return where a model's first module with parameters runs: what a prompt is given to."""
    return next(_devices(model), torch.device("cpu"))


def execution_devices(model: nn.Module) -> set[torch.device]:
    """Return all devices that a model's modules run on."""
    return set(_devices(model))


def require_values(model: nn.Module) -> None:
    """Refuse a model with parameters that are neither in memory nor kept by accelerate.

    Raises
    ------
    UnsupportedModelError
        Naming the first.
    """
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta and offloaded(module) is None:
                raise UnsupportedModelError(
                    f"{path}.{name} has no values (meta device), in memory or where accelerate offloads them to; load "
                    "the model with its weights"
                )


def refuse_offloaded_packed(model: nn.Module) -> None:
    """Refuse packed modules that accelerate offloads: it moves their codes and loses what decodes them.

    Raises
    ------
    UnsupportedModelError
        Naming the first.
    """
    for path, module in model.named_modules():
        if offloaded(module) is None:
            continue
        for name, parameter in module._parameters.items():
            if type(parameter).__module__.startswith("bitsandbytes."):
                raise UnsupportedModelError(
                    f"{path}.{name} is packed by bitsandbytes and offloaded, which accelerate cannot run; keep packed "
                    "weights in memory, or offload plain ones"
                )


def kept_in_memory(module: nn.Module) -> Iterator[Tensor]:
    """Yield the very tensors that accelerate offloads of a module's own to host memory; none of those on disk."""
    for hook in _hooks(module):
        for prefix, values in _in_memory(getattr(hook, "weights_map", None)):
            yield from (values[key] for name in _own_tensors(module) if (key := prefix + name) in values)


def _in_memory(values: Any, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the dictionaries behind a map of accelerate's, each with what it puts before a name."""
    if isinstance(values, dict):
        yield prefix, values
    elif hasattr(values, "dataset"):
        yield from _in_memory(values.dataset, values.prefix + prefix)
    elif hasattr(values, "state_dict"):
        yield from _in_memory(values.state_dict, prefix)


def kept_by_hooks(module: nn.Module) -> Iterator[object]:
    """Yield what a copy of a module must share with it: weight maps, and the tied tensors that hooks put on devices."""
    for hook in _hooks(module):
        if getattr(hook, "weights_map", None) is not None:
            yield hook.weights_map
        for placed in (getattr(hook, "tied_params_map", None) or {}).values():
            yield from placed.values()


def _devices(model: nn.Module) -> Iterator[torch.device]:
    """Yield where each parameter is used."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                source = offloaded(module) if parameter.is_meta else None
                yield parameter.device if source is None else source.device


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def _numbered(device: torch.device) -> torch.device:
    """Return a device as tensors name it: "cuda" is the present one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    both = {**module._parameters, **module._buffers}
    return {name: value for name, value in both.items() if value is not None}

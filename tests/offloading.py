"""Models whose weights accelerate keeps on disk or in host memory, and a map that counts what is read from it."""

import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor

CPU = torch.device("cpu")


def on_disk(model: Any, folder: Path, device: torch.device = CPU) -> Any:
    """Put every parameter of a model on disk."""
    disk_offload(model, folder, execution_device=device)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


def in_host_memory(model: Any, device: torch.device = CPU) -> Any:
    """Put every parameter of a model in a state dict beside it."""
    cpu_offload(model, execution_device=device)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


class Counts:
    """What was read from a model's weight maps: names in order, the threads that read, and the bytes alive at once."""

    def __init__(self, model: Any) -> None:
        self.names: list[str] = []
        self.threads: set[str] = set()
        self.live = self.most = 0
        self._lock = threading.Lock()
        for path, module in model.named_modules():
            hook = getattr(module, "_hf_hook", None)
            if getattr(hook, "weights_map", None) is not None:
                hook.weights_map = _Counted(hook.weights_map, f"{path}.", self)

    def reset(self) -> None:
        self.names, self.threads, self.most = [], set(), self.live

    def read(self, name: str, value: Tensor) -> Tensor:
        """Give a copy of a value, as a disk would, and follow it as long as its storage lives."""
        copy = value.clone()
        with self._lock:
            self.names.append(name)
            self.threads.add(threading.current_thread().name)
            self.live += copy.nbytes
            self.most = max(self.most, self.live)
        weakref.finalize(copy.untyped_storage(), self._gone, copy.nbytes)
        return copy

    def _gone(self, size: int) -> None:
        with self._lock:
            self.live -= size


class _Counted(Mapping[str, Tensor]):
    def __init__(self, inside: Mapping[str, Tensor], prefix: str, counts: Counts) -> None:
        self.inside, self.prefix, self.counts = inside, prefix, counts

    def __getitem__(self, name: str) -> Tensor:
        return self.counts.read(self.prefix + name, self.inside[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.inside)

    def __len__(self) -> int:
        return len(self.inside)

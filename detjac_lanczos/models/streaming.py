"""Weights that are not where they are used: read for one product, or held while a sweep is at their block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from detjac_kernels.gemm import Around
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.lora import AdaptedWeight
from detjac_lanczos.models.offloaded import OffloadedModule, offloaded
from detjac_lanczos.models.side_stream import Pace
from detjac_lanczos.models.weights import Weight


class StreamedWeight:
    """A weight of an offloaded module: that of the module with its values, of whatever kind it is.

    Parameters
    ----------
    source : OffloadedModule
    weight : function of a module
        Its weight; also asked of the module without values, for the shape.
    """

    def __init__(self, source: OffloadedModule, weight: Callable[[nn.Module], Weight]) -> None:
        self.source, self._weight = source, weight
        self.shape = weight(source.module).shape
        self.device = source.device

    def apply(self, x: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""
        with self.source.held() as module:
            return self._weight(module).apply(x, **around)

    def apply_transposed(self, y: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""
        with self.source.held() as module:
            return self._weight(module).apply_transposed(y, **around)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return W as a plain matrix (f, d)."""
        with self.source.held() as module:
            return self._weight(module).dense(dtype)


def weight_from(module: nn.Module, weight: Callable[[nn.Module], Weight]) -> Weight:
    """Return the weight of a module, a function of it: in place, or streamed if the module is offloaded."""
    source = offloaded(module)
    return weight(module) if source is None else StreamedWeight(source, weight)


def source_of(weight: Weight) -> OffloadedModule | None:
    """Return the offloaded module that a weight, or the one below its adapters, is read from; None if it is here."""
    if isinstance(weight, AdaptedWeight):
        return source_of(weight.base)
    return weight.source if isinstance(weight, StreamedWeight) else None


def in_turn(groups: Sequence[Sequence[Held[Any, Any]]]) -> Iterator[int]:
    """Yield 0, 1, ...: at each turn the values of that group are held, and a thread reads those of the next.

    Each is read once, and the values of two groups at most are in memory. On a CUDA device they come on a stream of
    their own, while the group before is at work.
    """
    if not any(groups):
        yield from range(len(groups))
        return
    pace = Pace(source.device for group in groups for source in group)
    with ThreadPoolExecutor(1, "detjac-weights") as reader:
        coming = reader.submit(_read, groups[0])
        for index, group in enumerate(groups):
            with ExitStack() as held:
                values = coming.result()
                pace.before()
                _hold(held, group, values)
                del values
                if index + 1 < len(groups):
                    coming = reader.submit(_read, groups[index + 1])
                yield index
                pace.after()


def _read(group: Sequence[Held[Any, Any]]) -> list[Any]:
    with torch.no_grad():
        return [source.read() for source in group]


def _hold(held: ExitStack, group: Sequence[Held[Any, Any]], values: Sequence[Any]) -> None:
    for source, read in zip(group, values, strict=True):
        held.enter_context(source.held(read))

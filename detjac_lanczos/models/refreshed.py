"""Fingerprints of models that may have been trained since: taken anew where a look says so, and only there."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from detjac_lanczos.models.adapters import adapter_state
from detjac_lanczos.models.fingerprint import fingerprint_of
from detjac_lanczos.models.loaded import LoadedModel
from detjac_lanczos.models.unchanged import lasting_tensors, look, stored_in
from detjac_lanczos.models.unmoved import is_plain, middle_entries


class _Seen:
    """A model as it is now, resting adapters included, as they have a part in the fingerprint.

    Other than `Unchanged` it holds no weights, which may leave the model long before what this is of does.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = list(lasting_tensors(model, model.parameters()))
        self._tensors = [ref(tensor) for tensor in tensors]
        stored = filter(is_plain, chain.from_iterable(map(stored_in, tensors)))
        self._marks: Any = (
            list(adapter_state(model)),
            [look(tensor) for tensor in tensors],
            [torch.cat(entries).tolist() for entries in middle_entries(stored)],
        )

    def same_as(self, before: _Seen) -> bool:
        return self._marks == before._marks and all(
            now() is then() for now, then in zip(self._tensors, before._tensors, strict=True)
        )


_named: WeakKeyDictionary[nn.Module, tuple[str, _Seen]] = WeakKeyDictionary()
"""Fingerprints of models, each with what the model was when it was taken."""


def remembered(loaded: LoadedModel) -> LoadedModel:
    """Return a model whose fingerprint was just taken, so that `refreshed` need not take it again."""
    _named[loaded.model] = (loaded.fingerprint, _Seen(loaded.model))
    return loaded


def refreshed(loaded: LoadedModel) -> LoadedModel:
    """Return a model itself where its fingerprint is that of its weights as they are now, or else with that.

    Writes are noticed as `Unchanged` notices them; where none are, no weight is read but for that.

    Raises
    ------
    UnsupportedModelError
        As `fingerprint_of`.
    """
    fingerprint, before = _named.get(loaded.model, ("", None))
    now = _Seen(loaded.model)
    if before is None or not now.same_as(before):
        fingerprint = fingerprint_of(loaded.model)
        _named[loaded.model] = fingerprint, now
    return loaded if fingerprint == loaded.fingerprint else replace(loaded, fingerprint=fingerprint)

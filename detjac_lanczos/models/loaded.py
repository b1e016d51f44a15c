"""The pair every other room starts from: a transformers model and its tokenizer, with a name and a fingerprint."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from detjac_lanczos.models.dequantized import distance_of_own_products
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.offloaded import execution_device
from detjac_lanczos.models.packed_modules import packing_of
from detjac_lanczos.models.text_model import text_config_of


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to be read; nothing here writes to it.

    Attributes
    ----------
    model
        The transformers module. One given live is the caller's own object, unchanged.
    tokenizer
        Its tokenizer, or None for a live model given without one (prompts are then token ids or embeddings).
    name
        What it was loaded as: an embedded name, a hub id, a path; of a live model what transformers loaded it as, or
        else its class.
    fingerprint
        SHA-256 over its weights as they were when this was made, see `fingerprint_of`. Where they are trained later,
        whatever is made of this (by `detach`, `analyze`, `load_model`) has the fingerprint of what they are then.
    quantization
        How `load_model` was asked to pack its weights; None where they were taken as they came.
    live
        Whether it was given live: its name says what it is, and need not load it again.
    loading
        Options that it was loaded with, where they differ from the defaults; see `loading_of`.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str
    fingerprint: str
    quantization: str | None = None
    live: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type that the model computes in: of its weights, or of those that are not packed."""
        return compute_dtype(self.model)

    @cached_property
    def packing(self) -> str | None:
        """Formats of packed weights, such as "NF4 (bitsandbytes)"; None where all are plain."""
        return packing_of(self.model)

    @property
    def decoding(self) -> str | None:
        """Which weights a Jacobian of packed ones is of, in words; None where all are plain."""
        if self.packing is None:
            return None
        distance = distance_of_own_products(self.model)
        rounded = f" (products of its own modules round activations and differ by up to {distance:.1e})"
        return f"decoded from {self.packing}{rounded if distance else ''}"

    @property
    def device(self) -> torch.device:
        """Where the weights run (the first ones, if they are spread), whether they lie there or are offloaded."""
        return execution_device(self.model)

    @property
    def context_length(self) -> int | None:
        """Longest prompt the model was made for, in tokens; see `context_length_of`."""
        return context_length_of(self.model)


ModelLike = LoadedModel | nn.Module | tuple[nn.Module, Any] | str | os.PathLike[str]
"""What `load_model` takes: a model that is loaded, live (alone, or with its tokenizer), or named."""


def context_length_of(model: Any) -> int | None:
    """Return the longest prompt a model was made for, in tokens; None where its configuration sets no limit.

    Rotary frequencies that follow the length ("dynamic") or are stretched ("yarn") lead beyond what the model was
    first trained on, by the factor that the configuration gives.
    """
    config = text_config_of(model)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    return max(limit, min(_stretched(rope, limit) for rope in rotary_parameters(config)))


def rotary_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of rotary embeddings in a text configuration: one set, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [rope for rope in parameters.values() if isinstance(rope, dict)] or [parameters]


def _stretched(rope: dict[str, Any], limit: int) -> int:
    if rope.get("rope_type") not in ("dynamic", "yarn"):
        return limit
    return int((rope.get("factor") or 1.0) * (rope.get("original_max_position_embeddings") or limit))

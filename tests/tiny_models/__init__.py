"""Tiny random decoders with every parameter away from its default, each exercising what its family can do."""

from typing import Any

import torch

from detjac_lanczos.models import LoadedModel, load_model
from tests.tiny_models.dense import DENSE, gemma, llama
from tests.tiny_models.draw import LENGTH, VOCABULARY

__all__ = ["DENSE", "LENGTH", "VOCABULARY", "gemma", "llama", "loaded", "prompt_ids"]


def loaded(model: Any) -> LoadedModel:
    """Return the model behind `load_model`, without a tokenizer."""
    return load_model(model)


def prompt_ids(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random token ids, one list for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]

"""From what a user types to token ids, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.models import LoadedModel


@dataclass(frozen=True)
class Prompt:
    """One sequence. ``ids``: token ids; ``tokens``: their text; ``embeds``: (n, d) where given in place of ids."""

    text: str | None
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    embeds: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.tokens)


def read_prompts(
    loaded: LoadedModel,
    prompt: str | Sequence[str] | None,
    *,
    chat: bool,
    add_special_tokens: bool,
    input_ids: Tensor | Sequence[int] | Sequence[Sequence[int]] | None,
    inputs_embeds: Tensor | None,
) -> tuple[Prompt, ...]:
    """Return the prompts of a call, each with at least one token and no longer than the model's context.

    Raises
    ------
    InputError
        If none or more than one kind of input is given, a prompt is empty or too long, or an id is not in the
        vocabulary.
    """
    given = [name for name, value in (("prompt", prompt), ("input_ids", input_ids), ("inputs_embeds", inputs_embeds))
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise InputError(f"give exactly one of prompt, input_ids and inputs_embeds; got {', '.join(given) or 'none'}")
    if inputs_embeds is not None:
        prompts = [_from_embeds(loaded, inputs_embeds)]
    elif input_ids is not None:
        prompts = [_from_ids(loaded, ids, None) for ids in _rows_of_ids(input_ids)]
    else:
        texts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        if not texts:
            raise InputError("the list of prompts is empty; give at least one prompt")
        prompts = [_from_text(loaded, text, chat, add_special_tokens) for text in texts]
    limit = loaded.context_length
    for p in prompts:
        if limit is not None and p.length > limit:
            raise InputError(f"the prompt has {p.length} tokens, the model's context is {limit}; shorten the prompt")
    return tuple(prompts)


def _from_text(loaded: LoadedModel, text: Any, chat: bool, add_special_tokens: bool) -> Prompt:
    if not isinstance(text, str):
        raise InputError(f"a prompt must be a string, not {type(text).__name__}")
    if not text.strip():
        raise InputError("the prompt is empty; give some text")
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer; give one to load_model, or give input_ids")
    if chat:
        if not tokenizer.chat_template:
            raise InputError("this tokenizer has no chat template; leave chat off")
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    else:
        ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    return _from_ids(loaded, ids, text)


def _from_ids(loaded: LoadedModel, ids: Sequence[int], text: str | None) -> Prompt:
    ids = tuple(int(i) for i in ids)
    if not ids:
        raise InputError("the prompt has no tokens; give some text")
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    for token_id in ids:
        if not 0 <= token_id < vocabulary:
            raise InputError(f"token id {token_id} is not in the vocabulary of {vocabulary}")
    return Prompt(text, ids, tuple(decode(loaded, token_id) for token_id in ids))


def _from_embeds(loaded: LoadedModel, embeds: Tensor) -> Prompt:
    embeds = embeds[0] if embeds.ndim == 3 and embeds.shape[0] == 1 else embeds
    width = loaded.model.get_input_embeddings().weight.shape[1]
    if embeds.ndim != 2 or embeds.shape[1] != width or embeds.shape[0] == 0:
        raise InputError(f"inputs_embeds must be (positions, {width}), not {tuple(embeds.shape)}")
    if not torch.isfinite(embeds).all():
        raise InputError("inputs_embeds holds a NaN or an infinity")
    return Prompt(None, (), tuple(f"<{i}>" for i in range(len(embeds))), embeds)


def _rows_of_ids(input_ids: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    try:
        if isinstance(input_ids, list | tuple) and any(isinstance(row, list | tuple | Tensor) for row in input_ids):
            rows = [torch.as_tensor(row) for row in input_ids]
        else:
            ids = torch.as_tensor(input_ids)
            rows = [ids] if ids.ndim == 1 else list(ids)
    except (ValueError, TypeError, RuntimeError):
        rows = []
    if not rows or any(row.ndim != 1 or row.is_floating_point() for row in rows):
        raise InputError("input_ids must be integers: (positions,), (prompts, positions) or one list per prompt")
    return [row.tolist() for row in rows]


def decode(loaded: LoadedModel, token_id: int) -> str:
    """Return the text of one token, its id where there is no tokenizer."""
    return f"<{token_id}>" if loaded.tokenizer is None else str(loaded.tokenizer.decode([token_id]))

"""From what a user types to token ids, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, in_one_line
from detjac_lanczos.frozen.padding import Positions, rows_of, unpadded
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.models.text_model import text_config_of, token_table_of

Integers = Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]]
"""Token ids, masks and positions: of one prompt, or a row for each."""
Embeddings = Tensor | np.ndarray | Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One sequence without padding.

    ``ids``: token ids; ``tokens``: their text; ``embeds``: (n, d) where given in place of ids; ``position_ids``: where
    the model is told that the tokens stand, if not at 0, 1, 2, ...; ``chat``, ``add_special_tokens``: how text is read.
    """

    text: str | None
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    embeds: Tensor | None = None
    position_ids: Positions | None = None
    chat: bool = False
    add_special_tokens: bool = True

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def places(self, device: torch.device, copies: int = 1) -> dict[str, Tensor]:
        """Return the arguments of a forward pass that say which tokens are real and where they stand.

        The mask of ones is not idle: without one, transformers reads a jump in the positions as the border between two
        packed sequences.
        """
        arguments = {"attention_mask": torch.ones(copies, self.length, dtype=torch.long, device=device)}
        if self.position_ids is not None:
            arguments["position_ids"] = torch.tensor(self.position_ids, device=device).expand(copies, -1)
        return arguments


def read_prompts(
    loaded: LoadedModel,
    prompt: str | Sequence[str] | None,
    *,
    chat: bool,
    add_special_tokens: bool,
    input_ids: Integers | None,
    inputs_embeds: Embeddings | None,
    attention_mask: Integers | None = None,
    position_ids: Integers | None = None,
    positions_from_mask: bool = False,
) -> tuple[Prompt, ...]:
    """Return the prompts of a call, each with at least one token and no longer than the model's context.

    Parameters are those of `detach`, and ``positions_from_mask`` of its family.

    Raises
    ------
    InputError
        If none or more than one kind of input is given, a prompt is empty or too long, an id is not in the vocabulary,
        or the attention mask or the positions do not fit.
    UnsupportedModelError
        If the model embeds tokens by anything else than one table.
    """
    given = [name for name, value in (("prompt", prompt), ("input_ids", input_ids), ("inputs_embeds", inputs_embeds))
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise InputError(f"give exactly one of prompt, input_ids and inputs_embeds; got {', '.join(given) or 'none'}")
    if prompt is not None:
        if attention_mask is not None or position_ids is not None:
            raise InputError("attention_mask and position_ids go with input_ids or inputs_embeds; text is not padded")
        if isinstance(prompt, bytes) or not isinstance(prompt, Iterable):
            raise InputError(f"a prompt must be a string or a list of strings, not {type(prompt).__name__}")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not texts:
            raise InputError("the list of prompts is empty; give at least one prompt")
        prompts = [_from_text(loaded, text, chat, add_special_tokens) for text in texts]
    else:
        if chat:
            raise InputError("chat goes with a prompt of text; give input_ids or inputs_embeds without it")
        rows = _rows_of_ids(input_ids) if inputs_embeds is None else _rows_of_embeds(loaded, inputs_embeds)
        config = text_config_of(loaded.model)
        prompts = [
            _from_ids(loaded, row.tolist(), None, where) if inputs_embeds is None else _from_embeds(row, where)
            for row, where in unpadded(
                rows, attention_mask, position_ids, config, positions_from_mask=positions_from_mask
            )
        ]
    limit = loaded.context_length
    for p in prompts:
        if limit is not None and p.length > limit:
            raise InputError(f"the prompt has {p.length} tokens, the model's context is {limit}; shorten the prompt")
        wrong = [i for i in p.position_ids or () if i < 0 or (limit is not None and i >= limit)]
        if wrong:
            end = "on" if limit is None else f"to {limit - 1}"
            raise InputError(f"position {wrong[0]} cannot be used; positions go from 0 {end}, as the model's context")
    return tuple(replace(p, chat=bool(chat), add_special_tokens=bool(add_special_tokens)) for p in prompts)


def _from_text(loaded: LoadedModel, text: Any, chat: bool, add_special_tokens: bool) -> Prompt:
    if not isinstance(text, str):
        raise InputError(f"a prompt must be a string, not {type(text).__name__}")
    if not text:
        raise InputError("the prompt is empty; give some text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the prompt holds half of a surrogate pair, which is no character; give text in Unicode")
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer; give one to load_model, or give input_ids")
    if chat:
        ids = _through_chat_template(tokenizer, text)
    else:
        ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
    return _from_ids(loaded, ids, text)


_PART = "'type': 'text'"


def _through_chat_template(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of one user turn, up to where the model answers; the template brings its own special tokens.

    Some templates take a turn's content as text; others take a list of parts, and drop text without a word.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("this tokenizer has no chat template; leave chat off")

    def fill(content: Any, **options: Any) -> Any:
        turn = [{"role": "user", "content": content}]
        return tokenizer.apply_chat_template(turn, add_generation_prompt=True, **options)

    def in_parts(text: str) -> Any:
        return [{"type": "text", "text": text}]

    reason = "what it makes does not hold the text as it is"
    for content in (str, in_parts):
        try:
            filled = fill(content(text), tokenize=False)
            read = content is str or _PART not in filled or _PART in text  # not printed as a list
            if read and text.strip() in filled and filled != fill(content(text + text), tokenize=False):
                ids: list[int] = fill(content(text), tokenize=True, return_dict=True)["input_ids"]
                return ids
        except Exception as error:  # a template is a program of its own, and may fail in any way
            reason = in_one_line(error)
    raise InputError(f"the chat template takes no single user turn ({reason}); leave chat off")


def _from_ids(
    loaded: LoadedModel, ids: Sequence[int], text: str | None, position_ids: Positions | None = None
) -> Prompt:
    ids = tuple(int(i) for i in ids)
    if not ids:
        raise InputError("the prompt has no tokens; give some text")
    vocabulary = token_table_of(loaded.model).weight.shape[0]
    for token_id in ids:
        if not 0 <= token_id < vocabulary:
            word = "" if text is None else f", {decode(loaded, token_id)!r} in the text,"
            hint = "" if text is None else "; take the model's own tokenizer, or make room by resize_token_embeddings"
            raise InputError(f"token id {token_id}{word} is not in the vocabulary of {vocabulary}{hint}")
    return Prompt(text, ids, tuple(decode(loaded, token_id) for token_id in ids), None, position_ids)


def _from_embeds(embeds: Tensor, position_ids: Positions | None) -> Prompt:
    if not torch.isfinite(embeds).all():
        raise InputError("inputs_embeds holds a NaN or an infinity")
    return Prompt(None, (), tuple(f"<{i}>" for i in range(len(embeds))), embeds.detach().clone(), position_ids)


def _rows_of_ids(input_ids: Any) -> list[Tensor]:
    rows = rows_of(input_ids, axes=1)
    if (isinstance(input_ids, Tensor) and input_ids.numel() == 0) or any(len(row) == 0 for row in rows or ()):
        raise InputError("the prompt has no tokens; give at least one token id")
    if rows is None or any(row.is_floating_point() or row.dtype is torch.bool for row in rows):
        raise InputError("input_ids must be integers: (positions,), (prompts, positions) or one list per prompt")
    return rows


def _in_a_transform(tensor: Tensor) -> bool:
    """Tell whether a tensor is inside a transform of torch.func; False too where torch does not say."""
    try:
        from torch._C._functorch import is_functorch_wrapped_tensor  # torch has no public name for it
    except ImportError:
        return False
    return is_functorch_wrapped_tensor(tensor)


def _rows_of_embeds(loaded: LoadedModel, inputs_embeds: Any) -> list[Tensor]:
    width = token_table_of(loaded.model).weight.shape[1]
    rows = rows_of(inputs_embeds, axes=2)
    if rows and any(map(_in_a_transform, rows)):
        raise InputError("inputs_embeds is inside a transform of torch.func (grad, jvp, vmap): detach before it")
    if rows is None or any(row.shape[1] != width or len(row) == 0 for row in rows):
        have = tuple(inputs_embeds.shape) if isinstance(inputs_embeds, Tensor) else type(inputs_embeds).__name__
        raise InputError(
            f"inputs_embeds must be (positions, {width}), (prompts, positions, {width}) or one tensor per prompt, "
            f"not {have}"
        )
    return rows


def decode(loaded: LoadedModel, token_id: int) -> str:
    """Return the text of one token, its id where there is no tokenizer."""
    return f"<{token_id}>" if loaded.tokenizer is None else str(loaded.tokenizer.decode([token_id]))

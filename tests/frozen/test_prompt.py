"""A prompt of another kind than text, or without any, is one clear line."""

from typing import Any

import pytest

from detjac_lanczos.errors import InputError
from detjac_lanczos.models import load_model
from detjac_lanczos.operators import detach
from tests import tiny_models
from tests.models.conftest import tiny_tokenizer


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (5, "must be a string or a list of strings, not int"),
        (b"w3", "must be a string or a list of strings, not bytes"),
        (["w3", 5], "must be a string, not int"),
        ("\ud800", "half of a surrogate pair"),
        ([], "the list of prompts is empty"),
        ("", "the prompt is empty"),
        (" \n", "the prompt has no tokens"),
    ],
    ids=repr,
)
def test_what_is_no_text_is_refused(prompt: Any, message: str) -> None:
    loaded = load_model(tiny_models.llama(), tiny_tokenizer())
    with pytest.raises(InputError, match=message) as caught:
        detach(loaded, prompt)
    assert "\n" not in str(caught.value)


def test_a_word_beyond_the_models_vocabulary_is_named_with_what_to_do() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.llama()
    tokenizer.add_tokens([f"new{i}" for i in range(20)])
    word = len(model.get_input_embeddings().weight)
    name = tokenizer.decode([word])
    words = rf"token id {word}, '{name}' in the text, is not in the vocabulary of {word}; .*resize_token_embeddings"
    with pytest.raises(InputError, match=words):
        detach(load_model(model, tokenizer), f"w3 {name} w4")

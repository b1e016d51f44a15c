"""A prompt of another kind than text is one clear line."""

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
    ],
    ids=repr,
)
def test_what_is_no_text_is_refused(prompt: Any, message: str) -> None:
    loaded = load_model(tiny_models.llama(), tiny_tokenizer())
    with pytest.raises(InputError, match=message) as caught:
        detach(loaded, prompt)
    assert "\n" not in str(caught.value)

"""What a verification tells and does not judge: each word that reads otherwise today, and no more."""

from types import SimpleNamespace
from typing import Any

import pytest

from detjac_lanczos.runs.notes import loading_notes, wording_notes

WRITTEN = {"family": "Llama", "input": "x", "target_definition": "y", "weights": "packed", "route": "frozen"}


def notes(written: dict[str, str], today: dict[str, str]) -> list[str]:
    batch: Any = SimpleNamespace(operators=[SimpleNamespace(definition=today)])
    return list(wording_notes({"definition": written}, batch))


@pytest.mark.parametrize("name", ["family", "input", "target_definition", "weights"])
def test_words_that_have_changed_are_told_one_by_one(name: str) -> None:
    (told,) = notes(WRITTEN, WRITTEN | {name: "new words"})
    assert told.startswith(f"definition.{name} reads {WRITTEN[name]!r} in the record and 'new words' today")
    assert notes(WRITTEN, WRITTEN) == notes(WRITTEN, WRITTEN | {"route": "autograd"}) == []
    without = {key: value for key, value in WRITTEN.items() if key != name}
    assert notes(without, WRITTEN) == notes(WRITTEN, without) == []


def test_options_of_loading_are_told_where_there_are_any() -> None:
    assert list(loading_notes({"loading": {}})) == []
    assert list(loading_notes({"loading": {"revision": "v2"}})) == ["the model was loaded with revision='v2'"]

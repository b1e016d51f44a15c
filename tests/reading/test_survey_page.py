"""The page of a survey: every token in its table, cards of the certified ones alone, and everything said as text."""

import copy
import re
from typing import Any

import pytest

from detjac_lanczos.reading import render_page
from detjac_lanczos.reading.page.markup import dotted
from detjac_lanczos.runs import Run, analyze
from tests import tiny_models
from tests.reading.conftest import ODD_TOKENS
from tests.reading.test_page import Reader

POLISHED = 3


@pytest.fixture(scope="module")
def survey() -> Run:
    """Return a survey of as many tokens as there are odd ones."""
    loaded = tiny_models.loaded(tiny_models.llama())
    ids = tiny_models.prompt_ids(len(ODD_TOKENS))
    return analyze(loaded, input_ids=ids, k=2, method="shared_basis", polish=POLISHED)


@pytest.fixture
def record(survey: Run) -> dict[str, Any]:
    """Return its record with the worst tokens a vocabulary can hold, and one that was refused."""
    record: dict[str, Any] = copy.deepcopy(survey.record)
    record["prompt_tokens"], record["prompts"] = [list(ODD_TOKENS)], ["".join(ODD_TOKENS)]
    for token, odd in zip(record["tokens"], ODD_TOKENS, strict=True):
        token["token"] = odd
        token["left"][0][0]["token"] = token["right"][0][0]["token"] = odd
    refused = next(token for token in record["tokens"] if token["status"] == "estimate")
    refused |= {"status": "not_finite", "advice": "a NaN & nothing else", "survey": None, "certificate": None}
    refused |= {"singular_values": [None] * 2, "residuals": [[None, None]] * 2, "left": [], "right": []}
    refused |= {"stable_rank": None, "stable_rank_interval": None, "contribution": None}
    return record


def read(record: dict[str, Any], survey: Run) -> Reader:
    reader = Reader()
    reader.feed(render_page(record, survey.vectors))
    reader.close()
    return reader


def test_every_token_is_text_and_every_link_has_its_place(record: dict[str, Any], survey: Run) -> None:
    page = read(record, survey)
    assert page.open == []
    assert not page.tags & {"script", "img", "link", "iframe"}
    for odd in ODD_TOKENS:
        assert dotted(odd) in page.text
    assert "a NaN & nothing else" in page.text
    links = [value.removeprefix("#") for name, value in page.attributes if name == "href"]
    assert set(links) <= set(page.ids) and len(page.ids) == len(set(page.ids)) == len(ODD_TOKENS)


def test_cards_are_those_of_certified_tokens(survey: Run) -> None:
    page = render_page(survey.record, survey.vectors)
    assert page.count('<article class="card"') == POLISHED
    assert page.count("TRIPLETS 2/2") == 2 * POLISHED  # in the table and on its card
    assert len(re.findall(r'badge (?:plain|warn)"', page)) == len(ODD_TOKENS) - POLISHED
    assert f"{POLISHED} of {len(ODD_TOKENS)}" in page
    alone = copy.deepcopy(survey.record)
    alone["tokens"] = [token for token in alone["tokens"] if token["status"] == "estimate"]
    assert "Certified tokens" not in render_page(alone, survey.vectors)


def test_how_to_repeat_it_names_the_polish(survey: Run) -> None:
    page = read(survey.record, survey)
    assert "method='shared_basis'" in page.text and f"polish={POLISHED}" in page.text


def test_a_long_prompt_is_shortened_where_it_is_a_title(survey: Run) -> None:
    record = copy.deepcopy(survey.record)
    record["prompts"] = ["begin " + "word " * 2000 + "end"]
    page = render_page(record, survey.vectors)
    heading = re.search(r"<h1.*?</h1>", page, re.DOTALL)
    assert heading is not None and "begin" in heading[0] and "end" in heading[0] and len(heading[0]) < 800

"""The page of a survey: every token in its table, cards of the certified ones alone, and everything said as text."""

import copy
import re
from typing import Any

import pytest

from detjac_lanczos.reading import render_page
from detjac_lanczos.reading.page.markup import dotted
from detjac_lanczos.reading.page.survey import estimates_counted, survey_sections
from detjac_lanczos.runs import Run, analyze
from tests import tiny_models
from tests.reading.conftest import ODD_TOKENS
from tests.reading.test_page import read

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


def test_every_token_is_text_and_every_link_has_its_place(record: dict[str, Any], survey: Run) -> None:
    page = read(Run(record, survey.vectors))
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
    said = read(survey).text
    assert "method='shared_basis'" in said and f"polish={POLISHED}" in said


def test_a_long_prompt_is_shortened_where_it_is_a_title(survey: Run) -> None:
    record = copy.deepcopy(survey.record)
    record["prompts"] = ["begin " + "word " * 2000 + "end"]
    page = render_page(record, survey.vectors)
    heading = re.search(r"<h1.*?</h1>", page, re.DOTALL)
    assert heading is not None and "begin" in heading[0] and "end" in heading[0] and len(heading[0]) < 800


@pytest.fixture
def known(survey: Run) -> list[dict[str, Any]]:
    """An estimate, a flagged one and a polished token of which every figure is another one."""
    estimate = next(token for token in survey.record["tokens"] if token["status"] == "estimate")
    polished = next(token for token in survey.record["tokens"] if token["status"] == "converged")

    def told(token: dict[str, Any], name: str, found: float, **measured: Any) -> dict[str, Any]:
        own = {"token": name, "singular_values": [found, 0.1], "survey": token["survey"] | measured}
        return copy.deepcopy(token | own)

    return [
        told(estimate, "plain", 2.5, values=[3.0, 1.0], sigma_1=[2.0, 4.0], share=0.25, flagged=False),
        told(estimate, "doubt", 5.5, values=[6.0, 1.0], sigma_1=[5.0, 8.0], share=0.5, flagged=True),
        told(polished, "sure", 1.0, values=[1.5, 1.0], sigma_1=[0.5, 2.0], share=0.05, flagged=True),
    ]


def test_each_estimate_is_in_its_place(known: list[dict[str, Any]]) -> None:
    page = survey_sections(known, (-1.0, 1.0), "")
    rows = re.findall(r'class="num first">(.*?)</td><td class="num">(.*?)</td><td class="num">(.*?)</td>', page)
    assert rows == [("≈ 3.000", "2.000", "4.000"), ("≈ 6.000", "5.000", "8.000"), ("1.000", "0.5000", "2.000")]
    assert re.findall(r'<td class="num">([\d.]+ %)<span class="meter" aria-hidden="true"><i style="width:(.*?)%', page)[
        :5:2
    ] == [("25.0 %", "25.0"), ("50.0 %", "50.0"), ("5.00 %", "5.0")]
    facts = {name: re.sub(r"<[^>]*>", "", said) for name, said in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)}
    assert facts["Tokens estimated"] == "2 1 flagged" and facts["Tokens polished"] == "1"
    assert facts["Median share of ‖J‖² missed"] == "25.0 %"
    assert (facts["Largest σ₁"], facts["Smallest σ₁"]) == ("doubt #0 6.000", "sure #3 1.000")
    assert facts["Largest share missed"] == "doubt #0 50.0 %"
    assert estimates_counted(known) == "2 estimated, 1 of these flagged"
    assert "with probability 0.99 for all 14 tokens at once" in page


def test_a_bar_runs_from_what_was_found_to_what_may_be(known: list[dict[str, Any]]) -> None:
    page = survey_sections(known, (-1.0, 1.0), "")
    assert "plain: σ₁ ≈ 3.000, from 2.000 to 4.000<" in page
    assert "doubt: σ₁ ≈ 6.000, from 5.000 to 8.000<" in page
    assert "sure: σ₁ = 1.000<" in page
    (low, high, middle) = map(
        float, re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)"/><circle cx=".*?" cy="([\d.]+)"', page)[0]
    )
    assert high < middle < low


def test_intervals_of_zero_alone_have_no_axis(known: list[dict[str, Any]]) -> None:
    for token in known:
        token["survey"] |= {"values": [0.0, 0.0], "sigma_1": [0.0, 0.0]}
        token["singular_values"] = [0.0, 0.0]
    page = survey_sections(known, (-1.0, 1.0), "")
    assert "<svg" not in page
    assert page.count("<p>No singular value above 0 was found.</p>") == 2  # for all, and on the card
    assert "<dt>Largest σ₁</dt>" in page

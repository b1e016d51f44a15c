"""A record that contradicts itself fails, and the part that does is named, where its lines are written to match."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from detjac_lanczos import detach
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.runs import Run
from detjac_lanczos.runs.coherence_claims import coherence_claims, wording_notes
from tests.runs.conftest import forged
from tests.tiny_llama import PROMPT

TOKEN = "token 0 of prompt 0"


def contradictions(run: Run, model: LoadedModel) -> dict[str, list[str]]:
    """Return the parts that contradict the rest, by what they are parts of."""
    network, places = detach(model, PROMPT), {"source": "embeddings", "target": "output", "position": -1}
    found = [claim for claim in coherence_claims(run, network, network.jacobians(**places), places) if not claim.holds]
    told = dict(claim.what.removeprefix("contradictions in the ").split(": ", 1) for claim in found)
    return {where: parts.split(", ") for where, parts in told.items()}


def test_a_sound_record_contradicts_itself_nowhere(run: Run, complete: Run, tiny: LoadedModel) -> None:
    for sound in (run, complete):
        assert contradictions(forged(sound, lambda record: None), tiny) == {}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r["options"].update(tokens=[[0, 1]]), "options.tokens"),
        (lambda r: r["options"].update(method="dense"), "options.method"),
        (lambda r: (r["options"].update(method="auto"), r["work"].update(method="magic")), "work.method"),
        (lambda r: (r["options"].update(chat=True), r.update(prompts=[None])), "prompts"),
        (
            lambda r: r["options"].update(seed=2**32),
            "options (seed = 4294967296 is no seed: torch's generators hold 32 bits",
        ),
    ],
)
def test_options_that_the_run_did_not_follow(
    complete: Run, tiny: LoadedModel, change: Callable[[dict[str, Any]], object], part: str
) -> None:
    assert part in contradictions(forged(complete, change), tiny)["options"]


def _floors(by: float) -> Callable[[dict[str, Any]], object]:
    """Write another floor, the same in a token and its certificate."""
    return lambda token: [part.update(floor=by * part["floor"]) for part in (token, token["certificate"])]


def _claimed_floor(by: float) -> Callable[[dict[str, Any]], object]:
    """Write another floor in the claim of completeness alone."""
    return lambda token: token["certificate"]["completeness"].update(floor=by * token["certificate"]["floor"])


def _longer(token: dict[str, Any]) -> None:
    token["certificate"]["sigma_1"] *= 1.0001


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.update(singular_values=[None] * 4), ["status", "certificate", "stable_rank", "contribution"]),
        (lambda t: t.update(status="estimate"), ["status", "certificate"]),
        (lambda t: t["certificate"].update(completeness=None), ["certificate.completeness"]),
        (lambda t: t["certificate"].update(claimed=3), ["certificate.claimed"]),
        (_floors(0.5), ["floor", "completeness.floor"]),
        (_floors(1.1), ["floor"]),
        (_claimed_floor(2.0), ["completeness.floor"]),
        (_claimed_floor(-1e-3), ["completeness.floor"]),
        (_longer, ["certificate.sigma_1"]),
        (lambda t: t.update(survey={"flagged": False}), ["survey"]),
        (lambda t: t.update(energy=[0.5, 0.6]), ["energy"]),
    ],
)
def test_tokens_that_contradict_themselves(
    complete: Run, tiny: LoadedModel, change: Callable[[dict[str, Any]], None], parts: list[str]
) -> None:
    found = contradictions(forged(complete, lambda record: change(record["tokens"][0])), tiny)
    assert sorted(found[TOKEN]) == sorted(parts)


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("certify", "triplets", ["work.probe_products", "certificate.completeness"]),
        ("k", 3, ["singular_values"]),
        ("energy", 0.5, ["energy"]),
    ],
)
def test_tokens_that_contradict_the_options(
    complete: Run, tiny: LoadedModel, name: str, value: object, parts: list[str]
) -> None:
    found = contradictions(forged(complete, lambda record: record["options"].__setitem__(name, value)), tiny)
    for token in complete.tokens:
        assert sorted(found[token.name]) == sorted(parts)


def test_products_of_both_directions_count_against_the_budget(complete: Run, tiny: LoadedModel) -> None:
    work = [token.record["work"] for token in complete.tokens]
    most = max(max(part["products_forward"], part["products_transposed"]) for part in work)
    found = contradictions(forged(complete, lambda record: record["options"].__setitem__("max_products", most)), tiny)
    assert all(found[token.name] == ["work"] for token in complete.tokens)


def test_a_dense_model_is_of_no_quantization(run: Run, tiny: LoadedModel) -> None:
    false = forged(run, lambda record: record.__setitem__("quantization", "nf4"))
    assert contradictions(false, tiny) == {"definition": ["quantization"]}


def test_the_floor_of_zeros_is_none(run: Run, tiny: LoadedModel) -> None:
    false = Run(run.record, run.vectors | {"S.0.0": 0 * run.vectors["S.0.0"]})
    assert "floor" in contradictions(false, tiny)[TOKEN]


def test_the_floor_of_a_claim_may_round_otherwise_than_that_of_its_certificate(
    complete: Run, tiny: LoadedModel
) -> None:
    """The largest value of a search and that of its end are of two decompositions."""

    def change(record: dict[str, Any]) -> None:
        certificate = record["tokens"][0]["certificate"]
        certificate["completeness"]["floor"] = certificate["floor"] * (1 + 10 * 2**-23)

    assert contradictions(forged(complete, change), tiny) == {}


WRITTEN = {"family": "Llama", "input": "x", "target_definition": "y", "weights": "packed", "route": "frozen"}


def notes(written: dict[str, str], today: dict[str, str]) -> list[str]:
    batch: Any = SimpleNamespace(operators=[SimpleNamespace(definition=today)])
    return list(wording_notes({"definition": written}, batch))


@pytest.mark.parametrize("name", ["family", "input", "target_definition", "weights"])
def test_words_that_have_changed_are_told_one_by_one_and_judged_by_nobody(name: str) -> None:
    (told,) = notes(WRITTEN, WRITTEN | {name: "new words"})
    assert told.startswith(f"definition.{name} reads {WRITTEN[name]!r} in the record and 'new words' today")
    assert notes(WRITTEN, WRITTEN) == notes(WRITTEN, WRITTEN | {"route": "autograd"}) == []
    without = {key: value for key, value in WRITTEN.items() if key != name}
    assert notes(without, WRITTEN) == notes(WRITTEN, without) == []

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


def _live_and_chatting(record: dict[str, Any]) -> None:
    record["options"]["chat"] = True
    record["prompts"] = [None]


def _fewer_tokens(record: dict[str, Any]) -> None:
    record["options"]["tokens"] = [[0, 1]]


def _asked_for_another_method(record: dict[str, Any]) -> None:
    record["options"]["method"] = "dense"


def _another_method(record: dict[str, Any]) -> None:
    record["options"]["method"] = "auto"
    record["work"]["method"] = "magic"


def _seed_of_33_bits(record: dict[str, Any]) -> None:
    record["options"]["seed"] = 2**32


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_fewer_tokens, "options.tokens"),
        (_asked_for_another_method, "options.method"),
        (_another_method, "work.method"),
        (_live_and_chatting, "prompts"),
        (_seed_of_33_bits, "options (seed = 4294967296 is no seed: torch's generators hold 32 bits"),
    ],
)
def test_options_that_the_run_did_not_follow(
    complete: Run, tiny: LoadedModel, change: Callable[[dict[str, Any]], None], part: str
) -> None:
    assert part in contradictions(forged(complete, change), tiny)["options"]


def _no_values(token: dict[str, Any]) -> None:
    token["singular_values"] = [None] * len(token["singular_values"])


def _claimed_fewer(token: dict[str, Any]) -> None:
    token["certificate"]["claimed"] -= 1


def _low_floor(token: dict[str, Any]) -> None:
    token["floor"] = token["certificate"]["floor"] = token["floor"] / 2


def _high_floor(token: dict[str, Any]) -> None:
    token["floor"] = token["certificate"]["floor"] = 1.1 * token["floor"]


def _doubled_floor(token: dict[str, Any]) -> None:
    claim = token["certificate"]["completeness"]
    claim["floor"] = 2 * token["certificate"]["floor"]


def _negative_floor(token: dict[str, Any]) -> None:
    token["certificate"]["completeness"]["floor"] = -1e-9


def _higher_norm(token: dict[str, Any]) -> None:
    token["certificate"]["sigma_1"] *= 1.0001


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_no_values, ["status", "certificate", "stable_rank", "contribution"]),
        (lambda token: token.__setitem__("status", "estimate"), ["status", "certificate"]),
        (lambda token: token["certificate"].__setitem__("completeness", None), ["certificate.completeness"]),
        (_claimed_fewer, ["certificate.claimed"]),
        (_low_floor, ["floor", "completeness.floor"]),
        (_high_floor, ["floor"]),
        (_doubled_floor, ["completeness.floor"]),
        (_negative_floor, ["completeness.floor"]),
        (_higher_norm, ["certificate.sigma_1"]),
        (lambda token: token.__setitem__("survey", {"flagged": False}), ["survey"]),
        (lambda token: token.__setitem__("energy", [0.5, 0.6]), ["energy"]),
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

"""Runs in which tokens have as many triplets as a threshold or a share of the energy asks for."""

import json
from pathlib import Path

import pytest
import torch

from detjac_lanczos import detach, probe
from detjac_lanczos.cli import main
from detjac_lanczos.errors import InputError
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.reading.page.repeat import command_line, python_call
from detjac_lanczos.runs import Run, analyze, load_run, verify
from tests.runs.conftest import forged
from tests.tiny_llama import PROMPT

pytestmark = pytest.mark.usefixtures("one_thread", "unpainted")


def spectra(model: LoadedModel) -> list[torch.Tensor]:
    network = detach(model, PROMPT)
    return [
        torch.linalg.svdvals(network.jacobian(token).dense().double()) for token in range(len(network.prompts[0].ids))
    ]


@pytest.fixture(scope="module")
def above(tiny: LoadedModel) -> Run:
    """Return all triplets above a value between the first of two tokens: some tokens have none."""
    firsts = sorted(float(values[0]) for values in spectra(tiny))
    return analyze(tiny, PROMPT, threshold=(firsts[1] + firsts[2]) / 2, method="lanczos", certify="complete")


def test_tokens_have_what_lies_above(above: Run, tiny: LoadedModel) -> None:
    threshold = above.record["options"]["threshold"]
    counts = [int((values > threshold).sum()) for values in spectra(tiny)]
    assert [len(token.S) for token in above.tokens] == counts
    assert min(counts) == 0 < max(counts)
    assert above.converged
    assert above.spectrum().shape == (len(counts), max(counts))
    assert int(above.spectrum().isfinite().sum()) == sum(counts)
    assert above.record["options"]["k"] is None
    assert all(token.certificate.completeness.complete for token in above.tokens)


@pytest.mark.parametrize(
    "options", ["above", {"threshold": 3.6, "method": "dense"}, {"energy": 0.7}, {"energy": 0.7, "method": "dense"}]
)
def test_runs_are_stored_shown_and_verified(options: dict | str, above: Run, tiny: LoadedModel, tmp_path: Path) -> None:
    run = above if options == "above" else analyze(tiny, PROMPT, **options, certify="complete")
    folder = run.save(tmp_path / "out")
    again = load_run(folder)
    assert str(again) == str(run)
    assert again.page() == run.page()
    found = verify(folder, tiny)
    assert found.ok, str(found)
    if "energy" in options:
        shares = [token.record["energy"] for token in run.tokens]
        for (low, high), token, values in zip(shares, run.tokens, spectra(tiny), strict=True):
            share = float((values[: len(token.S)] ** 2).sum() / (values**2).sum())
            assert 0.7 <= low <= share * (1 + 1e-4)
            assert share <= high * (1 + 1e-4)
        for change in (
            lambda record: record["tokens"][0].__setitem__("energy", [0.9999, 0.99999]),
            lambda record: record["options"].__setitem__("energy", 0.99),
        ):
            failed = verify(forged(run, change), tiny).failed
            assert any("share of the energy of token 0" in claim.what for claim in failed)


def test_a_run_says_how_to_repeat_it(above: Run) -> None:
    assert f"threshold={above.record['options']['threshold']!r}" in python_call(above.record)
    assert "k=" not in python_call(above.record)
    assert "--certify complete" in command_line(above.record)
    assert "all triplets above" in repr(above)


def test_the_command_line_takes_goals(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tokens", "0", "--json", "-q", "--certify", "complete", "--delta", "1e-3", "--max-products", "200"]
    assert main(["svd", PROMPT, "--model", str(tiny_folder), "--energy", "0.5", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    asked = {"k": None, "energy": 0.5, "threshold": None, "certify": "complete", "delta": 1e-3, "max_products": 200}
    assert asked.items() <= record["options"].items()
    assert "δ = 0.001" in record["tokens"][0]["certificate"]["line"]
    assert main(["svd", PROMPT, "--model", str(tiny_folder), "-k", "2", "--threshold", "1"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_goals_exclude_each_other(tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="k and energy are given"):
        analyze(tiny, PROMPT, 3, energy=0.5)
    assert analyze(tiny, PROMPT, tokens=0, method="lanczos").record["options"]["k"] == 8


def test_a_share_that_a_budget_cut_short_is_held_from_both_sides(tiny: LoadedModel) -> None:
    run = analyze(tiny, PROMPT, energy=0.99, method="lanczos", max_products=30, tokens=[1, 2])
    assert {token.status for token in run.tokens} == {"budget"}
    assert verify(run, tiny).ok
    low, high = run.tokens[0].record["energy"]
    assert low < 0.99
    for wrong in ([0.001, 0.002], [0.9999, 0.99999], [high, low], [low, 1.1]):
        false = forged(run, lambda record, wrong=wrong: record["tokens"][0].__setitem__("energy", wrong))
        assert any("share of the energy of token 1" in claim.what for claim in verify(false, tiny).failed), wrong


@pytest.fixture(scope="module")
def plain(tiny: LoadedModel) -> Run:
    """Return what lies above a value that some tokens reach and some do not, with no claim of completeness."""
    firsts = sorted(float(values[0]) for values in spectra(tiny))
    return analyze(tiny, PROMPT, threshold=(firsts[1] + firsts[2]) / 2, method="lanczos")


def test_what_is_left_under_a_threshold_is_measured_and_no_proof(plain: Run, above: Run, tiny: LoadedModel) -> None:
    found = verify(plain, tiny)
    assert found.ok, str(found)
    measured = {claim.what: claim.measured for claim in found.claims}
    for token, values in zip(plain.tokens, spectra(tiny), strict=True):
        probed = measured[f"largest product of what the triplets of {token.name} leave"]
        assert 0.9 * values[len(token.S)] < probed <= values[len(token.S)] * (1 + 1e-5)
    assert f"that {len(plain.tokens)} of {len(plain.tokens)} tokens have no further value above" in str(found)
    assert "no further value" not in str(verify(above, tiny))


def test_a_lowered_threshold_fails_where_a_value_is_missing(plain: Run, tiny: LoadedModel) -> None:
    """Also for a token that has no triplets at all, and by little."""
    for values, token in zip(spectra(tiny), plain.tokens, strict=True):
        lowered = 0.97 * float(values[len(token.S)])
        false = forged(plain, lambda record, to=lowered: record["options"].__setitem__("threshold", to))
        failed = [claim.what for claim in verify(false, tiny).failed]
        assert f"largest product of what the triplets of {token.name} leave" in failed


def test_a_claim_of_all_values_fails_where_rounding_hides_whether_the_last_lies_above(
    above: Run, tiny: LoadedModel
) -> None:
    token = min((token for token in above.tokens if len(token.S)), key=lambda token: float(token.S[-1]))
    edge = float(token.S[-1]) * (1 - 1e-7)

    def moved(record: dict) -> None:
        record["options"]["threshold"] = edge
        for entry in record["tokens"]:
            entry["certificate"]["completeness"]["threshold"] = edge

    wrong = [claim.what for claim in verify(forged(above, moved), tiny).failed if "contradictions" in claim.what]
    assert wrong == [f"contradictions in the claim of completeness of {token.name}"]


def test_the_floor_of_a_token_without_triplets_is_that_of_its_claim(above: Run, tiny: LoadedModel) -> None:
    bare = next(token for token in above.tokens if not len(token.S))

    def doubled(record: dict) -> None:
        token = record["tokens"][bare.index]
        token["floor"] = token["certificate"]["floor"] = 2 * bare.record["floor"]

    failed = [claim.what for claim in verify(forged(above, doubled), tiny).failed]
    assert failed == [f"contradictions in the {bare.name}: floor"]


def test_what_is_left_is_measured_too_of_a_token_whose_claim_is_not_complete(above: Run, tiny: LoadedModel) -> None:
    first, token = above.tokens[:2]

    def opened(record: dict) -> None:
        record["tokens"][token.index]["certificate"]["completeness"]["complete"] = False

    told = [claim.what for claim in verify(forged(above, opened), tiny).claims]
    assert f"largest product of what the triplets of {token.name} leave" in told
    assert f"largest product of what the triplets of {first.name} leave" not in told


def test_no_value_at_a_threshold_lies_above_it(plain: Run, tiny: LoadedModel) -> None:
    token = next(token for token in plain.tokens if len(token.S))
    false = forged(plain, lambda record: record["options"].__setitem__("threshold", float(token.S[0])))
    (found,) = (claim for claim in verify(false, tiny).failed if claim.what.startswith(f"values of {token.name}"))
    assert found.measured == len(token.S)


def test_a_raised_threshold_fails(plain: Run, tiny: LoadedModel) -> None:
    false = forged(plain, lambda record: record["options"].__setitem__("threshold", 100.0))
    failed = {claim.what: claim.measured for claim in verify(false, tiny).failed}
    told = {f"values of {token.name} that are not above the threshold": len(token.S) for token in plain.tokens}
    assert failed == {what: count for what, count in told.items() if count}


@pytest.mark.parametrize("options", [{"tol": 0.02, "dtype": "bfloat16"}, {"max_products": 12}])
def test_sound_runs_above_a_threshold_hold(options: dict, tiny: LoadedModel) -> None:
    for threshold in (0.05, 1.0, 100.0):
        run = analyze(tiny, PROMPT, threshold=threshold, method="lanczos", **options)
        found = verify(run, (tiny.model, tiny.tokenizer) if "dtype" in options else tiny)
        assert found.ok, str(found)


def test_what_tokens_add_is_told_of_those_that_have_no_triplets(plain: Run, tiny: LoadedModel) -> None:
    network = detach(tiny, PROMPT)
    bare = [token for token in plain.tokens if not len(token.S)]
    assert bare
    for token in bare:
        operator = network.jacobian(token.index)
        product, y = operator.dense().double() @ operator.x.double(), operator.y.double()
        assert token.contribution == {
            "share": pytest.approx(float(product.norm() / y.norm()), rel=1e-4),
            "cosine": pytest.approx(float(product @ y / (product.norm() * y.norm())), abs=1e-4),
            "captured": 0.0,
        }
        false = forged(plain, lambda record, at=token.index: record["tokens"][at]["contribution"].update(share=0.5))
        assert f"difference in the contribution of {token.name}" in [c.what for c in verify(false, tiny).failed]


def test_what_is_read_in_triplets_is_not_told_of_tokens_that_have_none(plain: Run, tiny: LoadedModel) -> None:
    bare = next(token for token in plain.tokens if not len(token.S))
    rank = {"stable_rank": 3.0, "stable_rank_interval": [2.0, 4.0], "stable_rank_confidence": 0.9}
    for invented, parts in ((rank, "stable_rank"), ({"status": "budget"}, "contribution")):
        false = forged(plain, lambda record, parts=invented: record["tokens"][bare.index].update(parts))
        failed = [claim.what for claim in verify(false, tiny).failed]
        assert f"contradictions in the {bare.name}: {parts}" in failed


def test_that_nothing_is_left_is_measured(plain: Run, run: Run, tiny: LoadedModel) -> None:
    """Beside triplets that were asked for by number, and of tokens without any, whatever floor these are given."""
    exact = {"status": "breakdown_exact"}
    bare = next(token for token in plain.tokens if not len(token.S))
    for sound, token, change in ((run, run.tokens[1], exact), (plain, bare, exact | {"floor": 100.0})):
        false = forged(sound, lambda record, at=token.index, to=change: record["tokens"][at].update(to))
        failed = {claim.what: claim.measured for claim in verify(false, tiny).failed}
        below = float(spectra(tiny)[token.index][len(token.S)])
        assert failed[f"largest product beyond all triplets of {token.name}"] == pytest.approx(below, rel=0.1)


def test_that_nothing_is_left_cannot_be_said_above_a_floor_that_hides_values(tiny: LoadedModel) -> None:
    coarse = analyze(tiny, PROMPT, 2, tokens=[0], dtype="bfloat16")
    false = forged(coarse, lambda record: record["tokens"][0].update(status="breakdown_exact"))
    failed = [claim.what for claim in verify(false, (tiny.model, tiny.tokenizer)).failed]
    assert any(what.startswith("contradictions in the token 0 of prompt 0: status") for what in failed), failed


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized"])
def test_a_sound_run_that_found_all_there_is_holds(method: str, tiny: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    rank_2 = torch.randn(6, 2, generator=generator) @ torch.randn(2, tiny.model.config.hidden_size, generator=generator)
    for rows in (rank_2, torch.zeros_like(rank_2)):
        sound = analyze(tiny, PROMPT, 3, target=probe(rows), method=method)
        assert {token.status for token in sound.tokens} == {"breakdown_exact"}
        found = verify(sound, tiny)
        assert found.ok, str(found)
        assert sum("beyond all triplets" in claim.what for claim in found.claims) == len(sound.tokens)


def test_a_page_claims_no_more_of_a_threshold_than_was_shown(plain: Run, above: Run, tiny: LoadedModel) -> None:
    count = sum(len(token.S) for token in plain.tokens)
    assert f"{count} triplets found above" in plain.page()
    assert "Tokens searched" in plain.page() and "that there are no more is not claimed" in plain.page()
    assert "Tokens certified" in above.page() and "not claimed" not in above.page()
    none = analyze(tiny, PROMPT, threshold=100.0).page()
    assert "no triplet found above 100, tolerance 0.001; that there are no such is not claimed" in none
    assert "No singular value above 100 was found" in none and "TRIPLETS 0/0" not in none
    assert "The bar under a token" in none and "Left vector" not in none

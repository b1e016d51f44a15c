"""Surveys through `analyze`: estimates are told from claims, stored, read, measured again and shown."""

import copy
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError, RunFileError
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.operators import detach
from detjac_lanczos.reading import contribution, contributions, estimate_contributions, render_table
from detjac_lanczos.reading.survey_table import survey_line, survey_summary
from detjac_lanczos.runs import Run, analyze, load_run, surveying, verify
from detjac_lanczos.runs.surveying import name_the_survey
from detjac_lanczos.solvers import svd_batch
from tests.runs.conftest import forged, harm, tamper
from tests.tiny_llama import PROMPT

K = 3
POLISHED = 2


@pytest.fixture(scope="module")
def survey(tiny: LoadedModel) -> Run:
    """Return a survey of two prompts, with the worst tokens polished."""
    return analyze(tiny, [PROMPT, "most of the bridge"], K, method="shared_basis", polish=POLISHED)


@pytest.fixture(scope="module")
def stored(survey: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return survey.save(tmp_path_factory.mktemp("runs") / "survey")


@pytest.fixture
def harmed(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "harmed"))


def test_tokens_are_estimated_and_the_worst_certified(survey: Run, tiny: LoadedModel) -> None:
    network = detach(tiny, [PROMPT, "most of the bridge"])
    certified = [token for token in survey.tokens if not token.estimated]
    assert len(survey.tokens) == 10 and len(certified) == POLISHED
    assert min(_doubt(token) for token in certified) >= max(_doubt(t) for t in survey.tokens if t.estimated)
    for token in survey.tokens:
        exact = torch.linalg.svdvals(network.jacobian((token.prompt, token.index)).dense().double())
        assert token.survey is not None
        low, high = token.survey["sigma_1"]
        assert low <= exact[0] * (1 + 1e-5) and exact[0] <= high * (1 + 1e-5)
        assert bool((exact[:K] * (1 + 1e-5) >= token.S).all())
        true_rank = float(exact.square().sum() / exact[0] ** 2)
        assert token.record["stable_rank_interval"][0] <= true_rank <= token.record["stable_rank_interval"][1]
        if token.estimated:
            assert token.certificate is None
            assert [pair[0] for pair in token.residuals] == [None] * K
        else:
            assert token.certificate is not None and token.certificate.claimed == K
            torch.testing.assert_close(token.S.double(), exact[:K], rtol=1e-5, atol=0)
    assert not survey.converged
    assert all(token.settled for token in survey.tokens)


def _doubt(token: Any) -> float:
    return float(max(abs(token.survey["values"][0] / end - 1) for end in token.survey["sigma_1"]))


def test_work_is_that_of_the_survey_and_the_polish(survey: Run, tiny: LoadedModel) -> None:
    alone = analyze(tiny, [PROMPT, "most of the bridge"], K, method="shared_basis")
    assert survey.work["method"] == "shared_basis"
    assert f"{POLISHED} of 10 tokens polished" in survey.work["why"]
    assert alone.work["row_sweeps"] < survey.work["row_sweeps"]
    for token, only in zip(survey.tokens, alone.tokens, strict=True):
        more = token.record["work"]["products_forward"] > only.record["work"]["products_forward"]
        assert more != token.estimated
        assert token.survey == only.survey
    assert alone.converged is False and {token.status for token in alone.tokens} == {"estimate"}
    assert verify(alone, tiny).ok


def test_recorded_choices_repeat_the_survey_and_its_polish(survey: Run, tiny: LoadedModel) -> None:
    again = analyze(
        tiny,
        [PROMPT, "most of the bridge"],
        K,
        method="shared_basis",
        polish=np.int64(POLISHED),
        choices=survey.record["choices"],
    )
    assert json.loads(json.dumps(again.record["options"])) == json.loads(json.dumps(survey.record["options"]))
    assert again.record["choices"]["solver"] == survey.record["choices"]["solver"]
    for name, vector in survey.vectors.items():
        assert torch.equal(vector, again.vectors[name]), name


def test_a_polish_has_the_tolerance_and_the_choices_of_the_run(survey: Run, tiny: LoadedModel) -> None:
    choices = copy.deepcopy(survey.record["choices"])
    choices["solver"]["polish"]["block"] = 5
    again = analyze(tiny, PROMPT, K, method="shared_basis", polish=1, tol=1e-5, choices=choices)
    (certificate,) = (token.certificate for token in again.tokens if token.certificate is not None)
    assert certificate.tol == 1e-5 and certificate.claimed == K
    assert again.record["choices"]["solver"]["polish"] == choices["solver"]["polish"]


def test_a_stored_survey_is_read_and_holds(survey: Run, stored: Path, tiny: LoadedModel) -> None:
    run = load_run(stored)
    assert run.record == json.loads(json.dumps(survey.record))
    found = verify(run, tiny)
    assert found.ok, str(found)
    assert list(found.estimated) == [token.name for token in run.tokens if token.estimated]
    assert f"estimates, no certificates (σ_j at least the value given): {found.estimated[0]}" in str(found)
    told = [claim.what for claim in found.claims]
    for token in run.tokens:
        assert any(f"difference in the estimates of {token.name}" == what for what in told)
        assert any(f"residual of triplet 1 of {token.name}" == what for what in told) != token.estimated
        assert any(f"difference in the lower bounds of {token.name}" == what for what in told) == token.estimated


def _estimated(record: dict[str, Any]) -> dict[str, Any]:
    return next(token for token in record["tokens"] if token["status"] == "estimate")


def _sure(token: dict[str, Any]) -> None:
    token["survey"]["sigma_1"][1] = token["survey"]["sigma_1"][0]
    token["survey"]["flagged"] = False


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_sure, "estimates of"),
        (lambda token: token["survey"].__setitem__("flagged", not token["survey"]["flagged"]), "contradictions"),
        (lambda token: token["survey"].__setitem__("confidence", 0.999), "contradictions"),
        (lambda token: token["survey"].__setitem__("operators", 1), "contradictions"),
        (lambda token: token["survey"].__setitem__("probes", 0), "contradictions"),
        (lambda token: token["survey"].__setitem__("share", token["survey"]["share"] / 2 + 0.1), "estimates of"),
        (lambda token: token["survey"]["values"].__setitem__(2, 9.0), "estimates of"),
        (lambda token: token["survey"]["residuals"].__setitem__(0, 0.0), "estimates of"),
        (lambda token: token["residuals"][1].__setitem__(1, 0.5), "residual ρ_L of triplet 2"),
        (lambda token: token["residuals"][1].__setitem__(0, 0.0), "residual ρ_L of triplet 2"),
        (lambda token: token["singular_values"].__setitem__(0, 9.0), "between record and vectors"),
        (lambda token: token["contribution"].__setitem__("share", 0.9), "contribution of"),
        (lambda token: token.__setitem__("stable_rank", 1.0), "stable rank of"),
        (lambda token: token.__setitem__("status", "converged"), "residual of triplet"),
    ],
)
def test_a_changed_estimate_fails(
    harmed: Path, tiny: LoadedModel, change: Callable[[dict[str, Any]], None], what: str
) -> None:
    def change_one(record: dict[str, Any]) -> None:
        token = _estimated(record)
        change(token)
        if token["status"] == "converged":
            token["residuals"] = [[0.0, pair[1]] for pair in token["residuals"]]

    harm(harmed, change_one)
    assert any(what in claim.what for claim in verify(harmed, tiny).failed)


@pytest.mark.parametrize("polish", [POLISHED + 1, "flagged", None])
def test_as_many_are_polished_as_the_options_say(survey: Run, tiny: LoadedModel, polish: object) -> None:
    assert all(token.survey["flagged"] for token in survey.tokens) or polish != "flagged"
    false = forged(survey, lambda record: record["options"].__setitem__("polish", polish))
    assert [claim.what for claim in verify(false, tiny).failed] == ["contradictions in the options: options.polish"]


@pytest.mark.parametrize("k", [0, -1, 10**12])
def test_a_survey_is_made_again_for_the_triplets_that_are_there(survey: Run, tiny: LoadedModel, k: int) -> None:
    false = forged(survey, lambda record: record["options"].__setitem__("k", k))
    failed = verify(false, tiny).failed
    assert failed and all("contradictions" in claim.what for claim in failed)


@pytest.mark.parametrize("name", ["U", "S", "V", "survey.basis"])
def test_a_changed_vector_fails(survey: Run, harmed: Path, tiny: LoadedModel, name: str) -> None:
    token = _estimated(survey.record)
    key = name if name == "survey.basis" else f"{name}.{token['prompt']}.{token['index']}"
    tamper(harmed, lambda vectors: vectors[key].mul_(1.01))
    assert not verify(harmed, tiny).ok


def test_left_vectors_lie_in_the_basis(survey: Run, tiny: LoadedModel) -> None:
    """Outside of it Jᵀu is not measured: turned by 2e-3, u costs its residual no more than rounding does."""
    token, Q = _estimated(survey.record), survey.vectors["survey.basis"].double()
    name = f"U.{token['prompt']}.{token['index']}"
    U = survey.vectors[name].double()
    away = torch.randn(len(U), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    away = torch.nn.functional.normalize(away - Q.T @ (Q @ away), dim=0)
    turned = torch.cat([U[:, :1] * math.cos(2e-3) + away[:, None] * math.sin(2e-3), U[:, 1:]], dim=1).float()
    failed = [claim.what for claim in verify(Run(survey.record, survey.vectors | {name: turned}), tiny).failed]
    assert any("loss of orthonormality of" in what for what in failed)
    assert not any("residual" in what for what in failed)


@pytest.mark.parametrize("damage", [lambda Q: Q[:0], lambda Q: Q[: K - 1], lambda Q: Q * float("nan")])
def test_a_basis_that_is_none_is_named(harmed: Path, damage: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tamper(harmed, lambda vectors: vectors.update({"survey.basis": damage(vectors["survey.basis"])}))
    with pytest.raises(RunFileError, match="or its basis"):
        load_run(harmed)


def test_a_survey_without_its_estimates_is_no_run(harmed: Path) -> None:
    harm(harmed, lambda record: _estimated(record).__setitem__("survey", None))
    with pytest.raises(RunFileError, match="lacks what the survey estimated"):
        load_run(harmed)


def test_contributions_are_estimated_from_shared_rows(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many probes they come to what separate sweeps measure; the cosine needs its length alone."""
    network = detach(tiny, PROMPT)
    batch = network.jacobians()
    run = analyze(tiny, PROMPT, K, method="shared_basis")
    measured = contributions(batch, run.tokens)
    monkeypatch.setattr(contribution, "PROBES", 4000)
    for exact, found in zip(measured, estimate_contributions(batch, run.tokens), strict=True):
        assert found.share == pytest.approx(exact.share, rel=0.03)
        assert found.cosine == pytest.approx(exact.cosine, rel=0.03)
        assert found.captured == pytest.approx(exact.captured, rel=0.06)


def test_the_table_has_a_line_for_each_token_and_says_what_is_claimed(survey: Run) -> None:
    shown = render_table(survey.record)
    lines = shown.splitlines()
    assert sum("TRIPLETS 3/3" in line for line in lines) == POLISHED
    assert sum("estimate" in line and "≈" in line for line in lines) == 10 - POLISHED
    assert max(len(line) for line in lines if not line.startswith("time")) <= 110
    for flagged, claim in ((True, "estimate, flagged"), (False, "estimate  ")):
        told = copy.deepcopy(survey.record)
        for token in told["tokens"]:
            token["survey"]["flagged"] = flagged
        assert render_table(told).count(claim) == 10 - POLISHED
    refused = copy.deepcopy(survey.record)
    refused["tokens"][0] |= {"status": "not_finite", "survey": None, "advice": "the operator gave a NaN"}
    assert "not_finite: the operator gave a NaN" in render_table(refused)


def test_a_line_has_the_estimate_its_interval_and_what_was_missed(survey: Run) -> None:
    known = {"values": [3.0, 2.0, 1.0], "sigma_1": [2.0, 4.0], "share": 0.25}
    lines = {}
    for token in survey.record["tokens"]:
        told = token | {"survey": token["survey"] | known, "singular_values": [2.5, 2.0, 1.0]}
        lines[token["status"]] = survey_line(told, 110)
    assert re.search(r" ≈3\.000 +2\.000, 4\.000 +25\.0 % ", lines["estimate"])
    assert re.search(r" 2\.500 +2\.000, 4\.000 +25\.0 % ", lines["converged"])


def test_what_became_of_tokens_is_counted(survey: Run) -> None:
    """Of five tokens two were polished, one refused; both polished ones and one of two estimates were flagged."""
    token = _estimated(survey.record)
    flagged, plain = (token | {"survey": token["survey"] | {"flagged": flag}} for flag in (True, False))
    polished, refused = flagged | {"status": "converged"}, token | {"status": "not_finite", "survey": None}
    tokens = [flagged, plain, polished, polished, refused]
    counted, claimed = survey_summary(tokens)
    assert counted.startswith("2 of 5 tokens estimated, 2 polished; 3 flagged")
    assert counted.endswith(", 1 of them left")
    assert "probability 0.99 for all 10 tokens at once" in claimed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"polish": "flagged"}, "makes none: give 'shared_basis'"),
        ({"method": "shared_basis", "polish": 0}, "polish = 0 chooses no tokens"),
        ({"method": "shared_basis", "polish": True}, "polish = True chooses no tokens"),
        ({"method": "shared_basis", "polish": "worst"}, "polish = 'worst' chooses no tokens"),
        ({"method": "shared_basis", "certify": "complete"}, "cannot take up what probes find"),
        ({"method": "shared_basis", "threshold": 1.0}, "finds a given number of triplets"),
    ],
)
def test_what_no_survey_can_do_is_one_clear_line(tiny: LoadedModel, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        analyze(tiny, PROMPT, **options)


def test_a_polish_may_claim_completeness(tiny: LoadedModel) -> None:
    run = analyze(tiny, PROMPT, K, method="shared_basis", polish=1, certify="complete")
    (token,) = (token for token in run.tokens if not token.estimated)
    assert token.certificate is not None and token.certificate.completeness is not None
    assert verify(run, tiny).ok


def test_auto_names_the_survey_where_it_writes_many_matrices_out() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(257, 3, generator=generator) for _ in range(24)]
    dense = svd_batch(matrices, 2, method="dense")
    assert all("'shared_basis' gives estimates" in result.why for result in name_the_survey(dense))
    assert all(one is other for one, other in zip(dense[:23], name_the_survey(dense[:23]), strict=True))
    small = svd_batch([matrix[:256] for matrix in matrices], 2, method="dense")
    assert not any("shared_basis" in result.why for result in name_the_survey(small))
    lanczos = svd_batch(matrices[:1], 2, method="lanczos")
    assert name_the_survey(lanczos * 24)[0].why == "asked for"


def test_a_survey_whose_basis_fills_the_output_is_whole(tiny: LoadedModel) -> None:
    run = analyze(tiny, "the bridge out of", k=64, method="shared_basis")
    found = detach(tiny, "the bridge out of").jacobians()
    for token, operator in zip(run.tokens, found.operators, strict=True):
        true = torch.linalg.svdvals(operator.dense().double())
        torch.testing.assert_close(token.S.double(), true, rtol=1e-3, atol=1e-5 * float(true[0]))


def test_a_polish_has_the_block_the_seed_and_the_delta_of_the_run(tiny: LoadedModel) -> None:
    options = {"method": "shared_basis", "polish": 1, "certify": "complete", "delta": 1e-3, "seed": 7, "block": 5}
    run = analyze(tiny, PROMPT, K, **options)
    (certificate,) = (token.certificate for token in run.tokens if token.certificate is not None)
    assert certificate.completeness is not None
    assert (certificate.completeness.delta, certificate.completeness.seed) == (1e-3, 7)
    assert run.record["choices"]["solver"]["polish"]["block"] == 5


@pytest.mark.parametrize("method", ["dense", "randomized", "shared_basis"])
def test_a_block_that_nothing_would_have_is_refused_before_a_model_is_loaded(method: str) -> None:
    with pytest.raises(InputError, match=f"method '{method}' has none: leave it out"):
        analyze("no model is looked for", PROMPT, K, method=method, block=5)


def test_only_flagged_tokens_are_polished_where_one_asks_for_them(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveying, "flagged", lambda surveyed: [1, 4])
    run = analyze(tiny, PROMPT, K, method="shared_basis", polish="flagged")
    assert [token.index for token in run.tokens if not token.estimated] == [1, 4]

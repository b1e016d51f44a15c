"""A sample of the count that `make coverage` makes in full, and proof that it counts what is false."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from bench.cases import KS, SPECTRA, TOLERANCES, WIDTHS, Case, Problem, make_problem, values_of
from bench.coverage import DELTA, _distinct_within, count, judge, main, missed, probes_told_more, solve
from bench.coverage_page import page
from bench.spectral_operator import SpectralOperator
from detjac_lanczos.solvers import Status, SVDResult, check_operator, svd
from tests.solvers.spectra import spectrum

SIZE = 96


def test_claims_are_true_as_often_as_they_say() -> None:
    """Each spectrum, k and tolerance once, widths in turn."""
    total: Counter[str] = Counter()
    for index, (name, k, tol) in enumerate(product(SPECTRA, KS, TOLERANCES)):
        case = Case(name, k, tol, WIDTHS[(index + index // 6) % len(WIDTHS)])
        problem = make_problem(case, seed=index, largest=SIZE)
        found = count(case, problem, seed=index)
        assert found["claims"] == found["solves"]
        assert not found["wrong status"], case
        assert not found["false TRIPLETS"], case
        total.update(found)
    assert total["missed values"] >= len(KS) * len(TOLERANCES), "those that are hidden from the search"
    for claim in ("BOUND", "COMPLETE"):
        assert total[claim] >= 60
        assert total[f"false {claim}"] <= binom.ppf(1 - 1e-6, total[claim], DELTA), total


@pytest.mark.parametrize("name", ["root", "staircase", "rank 3", "spike"])
def test_probes_that_find_nothing_change_nothing(name: str) -> None:
    case = Case(name, 8, 1e-3, 4)
    problem = make_problem(case, seed=1, largest=SIZE)
    probed, plain = solve(case, problem, seed=1), solve(case, problem, seed=1, probes=False)
    assert not probes_told_more(probed)
    for one, other in ((probed.U, plain.U), (probed.S, plain.S), (probed.V, plain.V)):
        assert torch.equal(one, other)


def test_a_search_that_probes_reopen_may_go_on_on_either_side() -> None:
    """V spans its whole space when the probe's vectors are taken; the residual that they leave is on the other side."""
    case = Case("duplicates", 20, 1e-6, 1)
    problem = make_problem(case, seed=28)
    assert solve(case, problem, seed=28).converged


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30)])
def test_spectral_operators_are_what_they_say(shape: tuple[int, int]) -> None:
    values = 1 / np.arange(1.0, 31.0)
    operator = SpectralOperator(values, shape, seed=3, dtype=torch.float64)
    assert check_operator(operator).ok
    A = operator.matmat(torch.eye(shape[1], dtype=torch.float64))
    np.testing.assert_allclose(torch.linalg.svdvals(A), values, rtol=1e-12)
    V = operator.right_vectors([2, 5])
    np.testing.assert_allclose((A @ V).norm(dim=0), values[[2, 5]], rtol=1e-12)


def test_what_is_false_is_counted() -> None:
    case = Case("root", 8, 1e-3, 4)
    problem = make_problem(case, seed=0, largest=SIZE)
    result = solve(case, problem, seed=0)
    assert judge(case, problem, result)["COMPLETE"] == 1
    first = float(problem.exact[0])
    shifted = replace(problem, exact=problem.exact + 0.1 * first * (np.arange(len(problem.exact)) == 3))
    found = judge(case, shifted, result)
    assert found["false TRIPLETS"] == found["false BOUND"] == found["false COMPLETE"] == 1
    assert missed(case, shifted, result)
    assert not missed(case, problem, result)
    twice = result.S.clone()
    twice[1] = twice[0]
    assert judge(case, problem, replace(result, S=twice))["false TRIPLETS"] == 1
    assert judge(case, problem, replace(result, U=result.U.roll(1, dims=1)))["false TRIPLETS"] == 1
    lower = replace(problem, exact=problem.exact * 0.99)
    assert judge(case, lower, result)["false TRIPLETS"] == 1
    short = svd(problem.operator, 8, tol=1e-3, method="lanczos", max_products=20)
    assert judge(case, problem, short)["wrong status"] == 1
    assert judge(case, problem, replace(result, status=Status.BREAKDOWN_EXACT))["wrong status"] == 1


@pytest.fixture(scope="module")
def solved() -> tuple[Case, Problem, SVDResult]:
    case = Case("root", 8, 1e-3, 4)
    problem = make_problem(case, seed=0, largest=SIZE)
    return case, problem, solve(case, problem, seed=0)


def test_a_value_beyond_the_radius_is_false(solved: tuple[Case, Problem, SVDResult]) -> None:
    case, problem, result = solved
    wide = replace(result.certificate, e_k=1e-3 * result.certificate.sigma_1, completeness=None)
    for distance, false in ((0.5, 0), (1.5, 1)):
        shift = distance * wide.radius * (np.arange(len(problem.exact)) == 3)
        shifted = replace(problem, exact=problem.exact + shift)
        assert judge(case, shifted, replace(result, certificate=wide))["false TRIPLETS"] == false


def test_a_ritz_value_above_the_exact_one_is_false_whatever_the_radius(solved: tuple[Case, Problem, SVDResult]) -> None:
    case, problem, result = solved
    wide = replace(result.certificate, e_k=result.certificate.sigma_1, completeness=None)
    for factor, false in ((1.0001, 0), (0.9999, 1)):
        found = judge(case, replace(problem, exact=problem.exact * factor), replace(result, certificate=wide))
        assert found["false TRIPLETS"] == false


@pytest.mark.parametrize("way", ["matmat", "rmatmat"])
def test_residuals_of_both_sides_are_held(solved: tuple[Case, Problem, SVDResult], way: str) -> None:
    case, problem, result = solved
    exact = problem.exact_operator
    products = {"matmat": exact.matmat, "rmatmat": exact.rmatmat}
    longer = SimpleNamespace(**(products | {way: lambda block: 1.01 * products[way](block)}))
    assert judge(case, replace(problem, exact_operator=longer), result)["false TRIPLETS"] == 1


def test_a_solve_without_probes_is_judged_where_they_told_more() -> None:
    """*hidden* starts from vectors that leave one triplet out: the probe finds it, a plain solve misses it."""
    case = Case("hidden", 8, 1e-3, 4)
    problem = make_problem(case, seed=0, largest=SIZE)
    assert probes_told_more(solve(case, problem, seed=0))
    found = count(case, problem, seed=0)
    assert (found["solves"], found["claims"], found["BOUND"], found["missed values"]) == (2, 2, 1, 1)


def test_the_page_says_what_was_counted() -> None:
    name = Case("root", 8, 1e-3, 4).name
    counted = {"solves": 100, "BOUND": 100, "false BOUND": 3, "COMPLETE": 90, "missed values": 2}
    record = {"seeds": {"root": [0, 1]}, "seeds wanted": 300, "delta": 0.05, "torch": "2", "cases": {name: counted}}
    text, sound = page(record)
    assert sound
    assert "2 of 300 seeds at least (**partial**)" in text
    assert "| root (2 seeds) | 100 | 0 | 0, 0, 0, 0 | 0, 0, 2, 0 | 3 of 100 | 0 of 90 |" in text
    other = Case("zero", 8, 1e-3, 4).name
    for worse in ({"false BOUND": 30}, {"false COMPLETE": 30}, {"false TRIPLETS": 1}, {"wrong status": 1}):
        cases = {name: counted | worse, other: counted}
        text, sound = page(record | {"seeds": {"root": [0], "zero": [0]}, "cases": cases})
        assert not sound
        assert "**A claim failed" in text


@pytest.mark.parametrize(("false", "code"), [(0, 0), (1, 1)])
def test_a_false_claim_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, false: int, code: int) -> None:
    monkeypatch.setattr("bench.coverage.count", lambda *_: Counter({"solves": 1, "false TRIPLETS": false}))
    files = ["--out", str(tmp_path / "coverage.json"), "--page", str(tmp_path / "coverage.md")]
    assert main(["--seeds", "1", "--spectra", "zero", *files]) == code


def test_spectra_are_counted_apart_and_put_together(tmp_path) -> None:
    record, page_file = tmp_path / "coverage.json", tmp_path / "coverage.md"
    kept = {
        key: {"solves": 7, "BOUND": 0} for key in ("rank k | k 1 | tol 0.001 | width 2", "zero | k 9 | tol 1 | width 2")
    }
    known = {"seeds": {"rank k": [0], "zero": [0]}, "cases": kept, "seeds wanted": 1, "delta": 0.05, "torch": "2"}
    record.write_text(json.dumps(known | {"note": "By hand."}))
    anew, beside = tmp_path / "anew.json", ["--page", str(page_file), "--spectra", "zero"]
    for _ in range(2):
        assert main(["--seeds", "1", "--out", str(anew), *beside]) == 0
        counted = json.loads(anew.read_text())
        assert counted["seeds"] == {"zero": [0]}
        assert len(counted["cases"]) == len(KS) * len(TOLERANCES) * len(WIDTHS)
        assert all(found["claims"] == found["solves"] > 0 for found in counted["cases"].values())
    assert main(["--out", str(record), "--merge", str(anew), *beside]) == 0
    together = json.loads(record.read_text())
    assert together["cases"] == counted["cases"] | {"rank k | k 1 | tol 0.001 | width 2": {"solves": 7, "BOUND": 0}}
    assert together["seeds"] == {"rank k": [0], "zero": [0]}
    text = page_file.read_text()
    assert "Made by `make coverage`: 1 seeds" in text
    assert "By hand." in text


def test_a_noise_floor_is_right_only_where_nothing_better_was_possible(solved: tuple[Case, Problem, SVDResult]) -> None:
    case, problem, result = solved
    stopped = replace(result, status=Status.NOISE_FLOOR)
    few = replace(problem, exact=problem.exact * (np.arange(len(problem.exact)) < 3))
    assert judge(case, problem, stopped)["wrong status"] == 1
    assert judge(case, few, stopped)["wrong status"] == 0
    faint = replace(problem, exact=few.exact + 10 * result.floor)
    assert judge(case, faint, stopped)["wrong status"] == 0
    assert judge(case, few, replace(result, status=Status.BUDGET))["wrong status"] == 1


@pytest.mark.parametrize(("beyond", "lacks"), [(0.5, False), (2.0, True)])
def test_a_value_is_missed_that_lies_beyond_the_tolerance(
    solved: tuple[Case, Problem, SVDResult], beyond: float, lacks: bool
) -> None:
    case, problem, result = solved
    found = result.S.double().numpy()
    last = np.where(np.arange(case.k) == case.k - 1, 1 + beyond * case.tol, 1.0)
    assert missed(case, replace(problem, exact=found * last), result) is lacks
    following = np.concatenate([found, found[-1:] * (1 + beyond * case.tol)])
    assert not missed(case, replace(problem, exact=following), result)


@pytest.mark.parametrize("way", ["matmat", "rmatmat"])
def test_residuals_are_held_to_the_tolerance(solved: tuple[Case, Problem, SVDResult], way: str) -> None:
    case, problem, result = solved
    exact = problem.exact_operator
    products = {"matmat": exact.matmat, "rmatmat": exact.rmatmat}
    longer = SimpleNamespace(**(products | {way: lambda block: (1 + 2.5 * case.tol) * products[way](block)}))
    assert judge(case, replace(problem, exact_operator=longer), result)["false TRIPLETS"] == 1
    assert judge(case, problem, result)["false TRIPLETS"] == 0


def test_seeds_add_up_over_several_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.coverage.count", lambda *_: Counter({"solves": 2, "claims": 1}))
    record, files = tmp_path / "coverage.json", ["--page", str(tmp_path / "coverage.md"), "--spectra", "zero"]
    for more in (["--seeds", "1"], ["--seeds", "3"], ["--seeds", "9", "--minutes", "0"]):
        assert main([*more, "--out", str(record), *files]) == 0
    found = json.loads(record.read_text())
    assert found["seeds"] == {"zero": [0, 1, 2]}
    assert len(found["cases"]) == len(KS) * len(TOLERANCES) * len(WIDTHS)
    assert all(case == {"solves": 6, "claims": 3} for case in found["cases"].values())


@pytest.mark.parametrize("claim", ["BOUND", "COMPLETE"])
def test_a_count_is_sound_up_to_what_is_still_likely(claim: str) -> None:
    name = Case("root", 8, 1e-3, 4).name
    unlikely = next(count for count in range(101) if binom.sf(count - 1, 100, 0.05) <= 1e-4)
    for false, sound in ((unlikely - 1, True), (unlikely, False)):
        cases = {name: {"solves": 100, "BOUND": 100, "COMPLETE": 100, f"false {claim}": false}}
        record = {"seeds": {"root": [0]}, "seeds wanted": 1, "delta": 0.05, "torch": "2", "cases": cases}
        assert page(record)[1] is sound


def test_problems_are_as_various_as_the_page_says() -> None:
    case = Case("root", 1, 1e-3, 1)
    problems = [make_problem(case, seed).operator for seed in range(400)]
    sizes = sorted(min(problem.shape) for problem in problems)
    assert sizes[0] == 64 and 560 < sizes[-1] <= 600
    assert 0.4 <= np.mean(np.array(sizes) < 85) <= 0.6
    assert 0.06 <= np.mean(np.array(sizes) > 300) <= 0.17
    shapes = Counter(problem.shape[0] / problem.shape[1] for problem in problems)
    scales = Counter(round(float(np.log10(problem.values[0] / spectrum("root", 64, 8)[0]))) for problem in problems)
    dtypes = Counter(problem.dtype for problem in problems)
    assert set(shapes) == {0.5, 1.0, 2.0} and set(scales) == {-30, 0, 30}
    assert set(dtypes) == {torch.float32, torch.float64}
    assert all(min(kinds.values()) >= 90 for kinds in (shapes, scales, dtypes))
    assert make_problem(replace(case, tol=1e-6), 1).operator.dtype is torch.float64


def test_spectra_have_the_ranks_and_the_repeated_values_that_they_are_named_after() -> None:
    ranks = {name: int((values_of(Case(name, 8, 1e-3, 4), 96) > 0).sum()) for name in ("rank 3", "rank k", "zero")}
    assert ranks == {"rank 3": 3, "rank k": 8, "zero": 0}
    values = values_of(Case("duplicates", 8, 1e-3, 4), 96)
    assert np.all(np.diff(values) <= 0)
    (times,) = (count for count in Counter(values).values() if count > 1)
    assert times == 10 > max(WIDTHS) and np.ptp(values[4:14]) == 0
    hidden = make_problem(Case("hidden", 8, 1e-3, 4), seed=3, largest=SIZE)
    found = hidden.exact_operator.matmat(hidden.start.double()).norm(dim=0).numpy()
    np.testing.assert_allclose(found, np.delete(hidden.exact[:9], 4), rtol=1e-5)


def test_each_value_needs_an_exact_one_of_its_own() -> None:
    assert _distinct_within(np.array([3.0, 3.0]), np.array([3.1, 2.9, 1.0]), 0.2)
    assert not _distinct_within(np.array([3.0, 3.0]), np.array([3.1, 1.0]), 0.2)


def test_a_page_is_as_far_as_the_spectrum_with_the_fewest_seeds() -> None:
    cases = {Case(name, 8, 1e-3, 4).name: {"solves": 1} for name in ("root", "zero")}
    record = {"seeds wanted": 3, "delta": 0.05, "torch": "2", "cases": cases, "seeds": {"root": [0, 1, 2], "zero": [0]}}
    assert "1 of 3 seeds at least (**partial**)" in page(record)[0]

"""A claim of completeness is in the run, on the page and in the table, and is made again by verify."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detjac_lanczos import detach
from detjac_lanczos.errors import RunFileError
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs import Run, analyze, load_run, verify
from detjac_lanczos.solvers import attempt
from tests.runs.conftest import forged, harm, tamper
from tests.tiny_llama import PROMPT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stored(complete: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its folder."""
    return complete.save(tmp_path_factory.mktemp("complete") / "out")


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder, to be harmed."""
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def claim_in(record: dict[str, Any]) -> dict[str, Any]:
    """Return the claim of the first token of a record, to be changed."""
    claim: dict[str, Any] = record["tokens"][0]["certificate"]["completeness"]
    return claim


def test_the_claims_are_true_of_the_jacobians(complete: Run, tiny: LoadedModel) -> None:
    network = detach(tiny, PROMPT)
    for token in complete.tokens:
        claim = token.certificate.completeness
        exact = torch.linalg.svdvals(network.jacobian(token.index).dense().double())
        upper = torch.tensor(claim.upper, dtype=torch.float64)
        assert bool((exact[: len(upper)] <= upper[: len(exact)]).all())
        assert claim.complete
        assert token.record["work"]["probe_products"] == claim.products


def test_a_stored_claim_is_read_back_and_shown(complete: Run, stored: Path) -> None:
    again = load_run(stored)
    for token, other in zip(complete.tokens, again.tokens, strict=True):
        assert other.certificate == token.certificate
        assert "COMPLETE: these are σ_1..σ_4 (δ = 1e-4" in token.certificate.line
        assert token.certificate.line in str(again)
        assert token.certificate.line in again.page()


def test_verify_makes_it_again(stored: Path, tiny: LoadedModel) -> None:
    found = verify(stored, tiny)
    assert found.ok, str(found)
    bounds = [claim for claim in found.claims if claim.what.startswith("bound of what")]
    assert len(bounds) == len(load_run(stored).tokens)
    for claim in bounds:
        assert claim.measured == pytest.approx(claim.claimed, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({"method": "dense"}, dtype) for dtype in ("float32", "float16", "bfloat16")]
    + [({"tol": 2e-2}, "bfloat16"), ({"k": 1}, "float64"), ({"seed": 2**32 - 1}, "float32")]
    + [({"k": None, "threshold": 1e4}, dtype) for dtype in ("float64", "float16")],
)
def test_every_kind_of_claim_holds(tiny_folder: Path, options: dict, dtype: str) -> None:
    model = load_model(tiny_folder, dtype=dtype)
    run = analyze(model, PROMPT, **({"k": 3, "certify": "complete", "method": "lanczos"} | options))
    assert all(token.certificate.completeness is not None for token in run.tokens)
    found = verify(run, model)
    assert found.ok, str(found)


def test_a_bound_far_above_the_first_value_holds_to_rounding_of_itself(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one or two steps of a probe it is a coefficient over γ, and so is what rounding does to that."""
    run = analyze(tiny, PROMPT, k=2, method="lanczos", max_products=24, certify="complete")
    claims = [token.certificate.completeness for token in run.tokens if token.certificate.completeness is not None]
    assert max(claim.tau / claim.sigma_1 for claim in claims) > 1e4
    plain = JacobianBatch.matmat

    def rounded_otherwise(batch: JacobianBatch, blocks: Any) -> list[torch.Tensor]:
        return [(1 + 2 * torch.finfo(product.dtype).eps) * product for product in plain(batch, blocks)]

    monkeypatch.setattr(JacobianBatch, "matmat", rounded_otherwise)
    found = verify(run, tiny)
    assert found.ok, str(found)

    false = forged(run, lambda record: claim_in(record).update(tau=1.0001 * claim_in(record)["tau"]))
    claim = next(claim for claim in verify(false, tiny).failed if claim.what == BOUND)
    told = str(claim).split("claimed ")[1].split(", measured ")
    assert told[0] != told[1] and len(told[0]) < 8


BOUND = "bound of what the triplets of token 0 of prompt 0 leave"
BOUNDS = "difference in the bounds of the singular values of token 0 of prompt 0"
PARTS = "contradictions in the claim of completeness of token 0 of prompt 0"
LINE = "difference between the certificate of token 0 of prompt 0 and its line"


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("k", lambda k: k - 1, PARTS),
        ("delta", lambda delta: 10 * delta, PARTS),
        ("seed", lambda seed: seed + 1, PARTS),
        ("number", lambda number: number + 1, BOUND),
        ("steps", lambda steps: [2], BOUND),
        ("products", lambda products: products - 1, PARTS),
        ("products", lambda products: products + 1, PARTS),
        ("delta", lambda delta: 0.1 * delta, PARTS),
        ("tau", lambda tau: 0.5 * tau, BOUND),
        ("tau", lambda tau: 1.01 * tau, BOUND),
        ("upper", lambda upper: [0.9 * bound for bound in upper], BOUNDS),
        ("rounding", lambda rounding: 10 * rounding, "difference in the rounding that the bounds of token 0"),
        ("complete", lambda complete: not complete, LINE),
        ("cluster", lambda cluster: not cluster, LINE),
        ("cluster", lambda cluster: not cluster, PARTS),
        *((name, lambda sigma, by=by: by * sigma, PARTS) for name in ("sigma_1", "sigma_k") for by in (0.99, 1.01)),
        ("floor", lambda floor: 2 * floor, "contradictions in the token 0 of prompt 0: completeness.floor"),
    ],
)
def test_a_changed_claim_fails(
    complete: Run, tiny: LoadedModel, name: str, value: Callable[[Any], Any], what: str
) -> None:
    false = forged(complete, lambda record: claim_in(record).update({name: value(claim_in(record)[name])}))
    if what == LINE:
        false.record["tokens"][0]["certificate"]["line"] = complete.tokens[0].certificate.line
    found = verify(false, tiny)
    assert any(claim.what.startswith(what) for claim in found.failed), str(found)


@pytest.mark.parametrize("by", [-1, 1])
def test_another_number_of_guards_is_no_run(copy: Path, by: int) -> None:
    harm(copy, lambda record: claim_in(record).update(guards=claim_in(record)["guards"] + by))
    with pytest.raises(RunFileError, match="lacks guards"):
        load_run(copy)


def _failed(run: Run, model: LoadedModel) -> list[str]:
    return [claim.what for claim in verify(run, model).failed]


def test_a_bound_that_is_widened_for_a_claim_fails(tiny: LoadedModel) -> None:
    """COMPLETE written where only a bound was found, the line with it, excused by rounding."""
    options = {"k": 4, "method": "lanczos", "tokens": [1]}
    needed = analyze(tiny, PROMPT, **options).work["columns"]
    run = analyze(tiny, PROMPT, **options, certify="complete", max_products=needed + 2)
    assert not run.tokens[0].certificate.completeness.complete

    false = forged(run, lambda record: claim_in(record).update(complete=True, rounding=10.0))
    assert _failed(false, tiny) == [
        "difference in the rounding that the bounds of token 1 of prompt 0 hold",
        "contradictions in the claim of completeness of token 1 of prompt 0",
    ]


CONTRADICTIONS = ["contradictions in the claim of completeness of token 1 of prompt 0"]


def test_no_claim_is_complete_with_tau_above_its_last_value(tiny: LoadedModel) -> None:
    """The bounds are within so wide a tolerance, and yet another value may lie above s_k."""
    options = {"k": 4, "tol": 0.5, "method": "lanczos", "tokens": [1]}
    needed = analyze(tiny, PROMPT, **options).work["columns"]
    run = analyze(tiny, PROMPT, **options, certify="complete", max_products=needed + 20)
    claim = run.tokens[0].certificate.completeness
    assert not claim.complete and claim.sigma_k < claim.tau
    assert all(bound <= 1.5 * value for bound, value in zip(claim.upper, run.tokens[0].S.tolist(), strict=False))
    assert _failed(forged(run, lambda record: claim_in(record).update(complete=True)), tiny) == CONTRADICTIONS


def test_no_claim_is_complete_with_bounds_beyond_its_tolerance(tiny: LoadedModel) -> None:
    """What is complete within a half is not within a tenth."""
    run = analyze(tiny, PROMPT, k=4, tol=0.5, method="lanczos", tokens=[1], certify="complete")
    claim = run.tokens[0].certificate.completeness
    assert claim.complete and claim.upper[3] > 1.1 * claim.sigma_k

    def change(record: dict[str, Any]) -> None:
        record["options"]["tol"] = record["tokens"][0]["certificate"]["tol"] = 0.1

    assert CONTRADICTIONS[0] in _failed(forged(run, change), tiny)


def test_no_claim_about_a_threshold_is_complete_with_a_bound_above_it(tiny: LoadedModel) -> None:
    options = {"threshold": 7.0, "method": "lanczos", "tokens": [1]}
    needed = analyze(tiny, PROMPT, **options).work["columns"]
    run = analyze(tiny, PROMPT, **options, certify="complete", max_products=needed + 4)
    claim = run.tokens[0].certificate.completeness
    assert not claim.complete and claim.upper[claim.k] > 7.0
    assert _failed(forged(run, lambda record: claim_in(record).update(complete=True)), tiny) == CONTRADICTIONS


def test_a_claim_about_another_threshold_than_was_asked_for_fails(tiny: LoadedModel) -> None:
    run = analyze(tiny, PROMPT, threshold=7.0, method="lanczos", tokens=[1], certify="complete")
    assert run.tokens[0].certificate.completeness.complete and run.tokens[0].S[-1] > 7.2

    assert _failed(forged(run, lambda record: claim_in(record).update(threshold=7.2)), tiny) == CONTRADICTIONS


@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_a_cluster_across_k_is_not_hidden(method: Any, tiny: LoadedModel) -> None:
    run = analyze(tiny, PROMPT, k=8, tol=0.3, method=method, tokens=[1], certify="complete")
    claim = run.tokens[0].certificate.completeness
    assert claim.cluster and (claim.guards > 0) == (method == "lanczos")

    assert _failed(forged(run, lambda record: claim_in(record).update(cluster=False)), tiny) == CONTRADICTIONS


def test_a_cluster_across_k_that_a_probe_alone_saw_is_not_hidden(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one made up of what no probe saw."""
    monkeypatch.setattr(attempt, "GUARDS", 0)
    for tol, cluster in ((0.3, True), (0.1, False)):
        run = analyze(tiny, PROMPT, k=8, tol=tol, method="lanczos", tokens=[1], certify="complete")
        claim = run.tokens[0].certificate.completeness
        assert (claim.guards, claim.cluster) == (0, cluster)

        false = forged(run, lambda record, cluster=cluster: claim_in(record).update(cluster=not cluster))
        assert _failed(false, tiny) == CONTRADICTIONS


def test_a_guard_that_is_no_number_fails(complete: Run, tiny: LoadedModel) -> None:
    vectors = complete.vectors | {"guards.V.0.0": complete.vectors["guards.V.0.0"] * math.nan}
    assert _failed(Run(complete.record, vectors), tiny) == [
        "numbers of token 0 of prompt 0 that are not finite, values below 0, and entries above 2"
    ]


@pytest.mark.parametrize(
    "changes",
    [{"number": -1}, {"number": 10**9}, {"delta": 1e-320}, {"delta": -0.5}, {"steps": []}, {"steps": [1] * 99}],
)
def test_a_claim_that_no_probe_makes_is_refused(copy: Path, changes: dict[str, Any]) -> None:
    harm(copy, lambda record: claim_in(record).update(changes))
    with pytest.raises(RunFileError, match="lacks guards, bounds or steps of the claim of token 0"):
        load_run(copy)


@pytest.mark.parametrize("changes", [{"steps": [0]}, {"steps": [-7], "tau": 0.0}, {"delta": 0.0}])
def test_a_claim_that_rests_on_nothing_fails(complete: Run, tiny: LoadedModel, changes: dict[str, Any]) -> None:
    assert complete.tokens[0].guards is not None
    false = forged(complete, lambda record: claim_in(record).update(changes))
    assert any("bound" in claim.what for claim in verify(false, tiny).failed)


def test_guards_that_are_not_there_are_named(copy: Path) -> None:
    tamper(copy, lambda vectors: [vectors.pop(f"guards.{part}.0.0") for part in "USV"])
    with pytest.raises(RunFileError, match="lacks guards"):
        load_run(copy)


def test_no_probe_takes_fewer_products_than_it_has_steps(complete: Run, tiny: LoadedModel) -> None:
    def change(record: dict[str, Any]) -> None:
        token = record["tokens"][0]
        steps = sum(token["certificate"]["completeness"]["steps"])
        token["certificate"]["completeness"]["products"] = token["work"]["probe_products"] = steps - 1

    assert PARTS in _failed(forged(complete, change), tiny)

"""A claim of completeness is in the run, on the page and in the table, and is made again by verify."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detjac_lanczos import detach
from detjac_lanczos.errors import RunFileError
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.runs import Run, analyze, load_run, verify
from tests.tiny_llama import PROMPT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def complete(tiny: LoadedModel) -> Run:
    """Return a run with the second claim, by Lanczos."""
    return analyze(tiny, PROMPT, k=4, method="lanczos", certify="complete", delta=1e-4)


@pytest.fixture(scope="module")
def stored(complete: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its folder."""
    return complete.save(tmp_path_factory.mktemp("complete") / "out")


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder, to be harmed."""
    return Path(shutil.copytree(stored, tmp_path / "copy"))


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
    + [({"tol": 2e-2}, "bfloat16"), ({"k": 1}, "float64"), ({"seed": -3}, "float32")]
    + [({"k": None, "threshold": 1e4}, dtype) for dtype in ("float64", "float16")],
)
def test_every_kind_of_claim_holds(tiny_folder: Path, options: dict, dtype: str) -> None:
    model = load_model(tiny_folder, dtype=dtype)
    run = analyze(model, PROMPT, **({"k": 3, "certify": "complete", "method": "lanczos"} | options))
    assert all(token.certificate.completeness is not None for token in run.tokens)
    found = verify(run, model)
    assert found.ok, str(found)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("tau", lambda tau: 0.5 * tau, "bound of what the triplets of token 0"),
        ("upper", lambda upper: [0.9 * bound for bound in upper], "bounds of the singular values of token 0"),
        ("delta", lambda delta: 1e-9, "token 0"),
        ("complete", lambda complete: not complete, "its line"),
        ("cluster", lambda cluster: not cluster, "its line"),
        ("sigma_1", lambda sigma: 1.01 * sigma, "contradictions in the claim of completeness of token 0"),
        ("seed", lambda seed: seed + 1, "contradictions"),
        ("products", lambda products: products - 1, "contradictions"),
        ("steps", lambda steps: [2], "bound of what the triplets of token 0"),
    ],
)
def test_a_changed_claim_fails(
    copy: Path, tiny: LoadedModel, name: str, value: Callable[[object], object], what: str
) -> None:
    record = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    claim = record["tokens"][0]["certificate"]["completeness"]
    claim[name] = value(claim[name])
    (copy / "run.json").write_text(json.dumps(record), encoding="utf-8")
    found = verify(copy, tiny)
    assert any(what in failed.what for failed in found.failed), str(found)


def test_a_claim_that_was_never_reached_fails(tiny: LoadedModel, tmp_path: Path) -> None:
    """COMPLETE written where only a bound was found, the line with it."""
    options = {"k": 4, "method": "lanczos", "tokens": [1]}
    needed = analyze(tiny, PROMPT, **options).work["columns"]
    run = analyze(tiny, PROMPT, **options, certify="complete", max_products=needed + 2)
    assert not run.tokens[0].certificate.completeness.complete
    folder = run.save(tmp_path / "out")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    certificate = record["tokens"][0]["certificate"]
    certificate["completeness"]["complete"] = True
    certificate["completeness"]["rounding"] = 10.0
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    certificate["line"] = load_run(folder).tokens[0].certificate.line
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert [claim.what for claim in verify(folder, tiny).failed] == [
        "difference in the rounding that the bounds of token 1 of prompt 0 hold",
        "contradictions in the claim of completeness of token 1 of prompt 0",
    ]


def test_guards_that_are_not_there_are_named(copy: Path) -> None:
    vectors = load_file(copy / "vectors.safetensors")
    name = next(name for name in vectors if name.startswith("guards.V"))
    for part in "USV":
        del vectors[name.replace("V", part, 1)]
    save_file(vectors, copy / "vectors.safetensors")
    with pytest.raises(RunFileError, match="lacks guards"):
        load_run(copy)

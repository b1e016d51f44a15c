"""Verifying a run measures its claims again: sound runs pass, any change that matters fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detjac_lanczos.errors import ModelError
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.runs import Run, analyze, load_run, verify
from tests.tiny_llama import PROMPT


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of a saved run, to be harmed."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_sound_run_holds(saved: Path, tiny: LoadedModel) -> None:
    found = verify(saved, tiny)
    assert found.ok, str(found)
    assert len(found.claims) > 6 * 4
    assert not found.failed


def test_the_model_is_loaded_by_its_recorded_name(saved: Path) -> None:
    assert verify(saved).ok


def test_it_measures_true_residuals(saved: Path, tiny: LoadedModel) -> None:
    from detjac_lanczos import detach

    found = {claim.what: claim.measured for claim in verify(saved, tiny).claims}
    run = load_run(saved)
    J = detach(tiny, PROMPT).jacobian(2).dense().double()
    U, S, V = (part.double() for part in (run.tokens[2].U, run.tokens[2].S, run.tokens[2].V))
    true = torch.maximum((J @ V - U * S).norm(dim=0), (J.T @ U - V * S).norm(dim=0))
    for j in range(4):
        assert found[f"residual of triplet {j + 1} of token 2 of prompt 0"] == pytest.approx(float(true[j]), rel=1e-2)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"freeze": "up"}, "float32"),
        ({"freeze": "half", "tokens": [1, 3]}, "float32"),
        ({"target": "residual"}, "float64"),
        ({"target": "logits", "position": 3}, "float32"),
        ({"prompt": [PROMPT, "most of the bridge"]}, "float32"),
        ({"method": "dense"}, "float64"),
        ({"certify": None}, "float32"),
        ({"tol": 2e-2}, "bfloat16"),
    ],
)
def test_every_kind_of_run_holds(tiny_folder: Path, options: dict, dtype: str) -> None:
    model = load_model(tiny_folder, dtype=dtype)
    found = verify(analyze(model, **({"prompt": PROMPT, "k": 3} | options)), model)
    assert found.ok, str(found)


def _tamper(copy: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    vectors = load_file(copy / "vectors.safetensors")
    vectors = {key: value.clone() for key, value in vectors.items()}
    vectors[name] = change(vectors[name])
    save_file(vectors, copy / "vectors.safetensors")


def _nudge(vectors: Tensor) -> Tensor:
    changed = vectors.clone()
    changed[0, 0] += 0.05
    return changed


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("U.0.2", _nudge, "residual of triplet 1 of token 2"),
        ("V.0.3", _nudge, "residual of triplet 1 of token 3"),
        ("V.0.3", lambda V: V.flip(1), "residual of triplet"),
        ("S.0.1", lambda S: S * 1.01, "values of token 1"),
        ("U.0.0", lambda U: U * 1.001, "orthonormality, left vectors of token 0"),
        ("U.0.0", lambda U: U * float("nan"), "token 0 of prompt 0 that are not finite"),
        ("x.0.4", lambda x: x * 1.001, "input of token 4"),
        ("y.0", lambda y: -y, "output of prompt 0"),
    ],
)
def test_a_changed_vector_fails(
    copy: Path, tiny: LoadedModel, name: str, change: Callable[[Tensor], Tensor], what: str
) -> None:
    _tamper(copy, name, change)
    found = verify(copy, tiny)
    assert not found.ok
    assert any(what in claim.what for claim in found.failed), str(found)
    assert "FAILS" in str(found)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda token: token["singular_values"].__setitem__(0, 99.0), "values of token 0"),
        (lambda token: token["residuals"].__setitem__(0, [0.0, 0.0]), None),
        (lambda token: token["certificate"].__setitem__("line", "TRIPLETS 400/400"), "its line"),
        (lambda token: token["certificate"].__setitem__("residual", 1e-12), "certified residual"),
        (lambda token: token["certificate"].__setitem__("tol", 0.9), "certified tolerance"),
        (lambda token: token["left"][0][0].__setitem__("id", 3), "decoded left vectors of token 0"),
        (lambda token: token["left"][1][2].__setitem__("token", "gold"), "decoded left vectors of token 0"),
        (lambda token: token["left"][3][4].__setitem__("score", 0.08), "decoded left vectors of token 0"),
        (lambda token: token["left"][3][4].__setitem__("logit", 0.9), "decoded left vectors of token 0"),
        (lambda token: token["left"][0].reverse(), "decoded left vectors of token 0"),
        (lambda token: token["right"][0].insert(0, token["right"][0].pop()), "decoded right vectors of token 0"),
        (lambda token: token["right"][2][1].__setitem__("score", 0.99), "decoded right vectors of token 0"),
        (lambda token: token.__setitem__("stable_rank", token["stable_rank"] * 1.01), "stable rank of token 0"),
        (lambda token: token["stable_rank_interval"].__setitem__(1, 2.0), "stable rank of token 0"),
        (lambda token: token["contribution"].__setitem__("captured", 1.0), "contribution of token 0"),
        (lambda token: token.__setitem__("token", "gold"), "tokens of prompt 0"),
        (lambda token: token["work"].__setitem__("passes", 10**12), "work of the run"),
    ],
)
def test_a_changed_record_fails(
    copy: Path, tiny: LoadedModel, change: Callable[[dict], None], what: str | None
) -> None:
    record = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    measured = max(record["tokens"][0]["residuals"][0])
    change(record["tokens"][0])
    (copy / "run.json").write_text(json.dumps(record), encoding="utf-8")
    found = verify(copy, tiny)
    if what is None:
        assert found.ok == (measured <= record["tokens"][0]["floor"])
    else:
        assert any(what in claim.what for claim in found.failed), str(found)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda record: record["work"].__setitem__("passes", 2), "work of the run"),
        (lambda record: record["work"].__setitem__("row_sweeps", 2.0), "work of the run"),
        (lambda record: record["prediction"][0].__setitem__("token", "gold"), "their copies"),
        (lambda record: record["prompts"].__setitem__(0, "the bridge out of town was"), "tokens of prompt 0"),
        (lambda record: record["prompt_tokens"][0].__setitem__(1, "gold"), "tokens of prompt 0"),
        (lambda record: record["predictions"][0][3].__setitem__("probability", 0.6), "predictions after prompt 0"),
        (lambda record: record["predictions"][0][3].__setitem__("token", "gold"), "predictions after prompt 0"),
        (lambda record: record["reconstructions"][0].__setitem__("offset_share", 0.5), "offset's share"),
    ],
)
def test_a_changed_run_fails(copy: Path, tiny: LoadedModel, change: Callable[[dict], None], what: str) -> None:
    record = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    change(record)
    (copy / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert any(what in claim.what for claim in verify(copy, tiny).failed)


def test_more_recorded_passes_excuse_no_residual(copy: Path, tiny: LoadedModel) -> None:
    """The floor of rounding grows with the passes: a forged count must not lift it over a forged vector."""
    record = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    for work in (record["work"], *(token["work"] for token in record["tokens"])):
        work["passes"] = 10**14
    (copy / "run.json").write_text(json.dumps(record), encoding="utf-8")
    _tamper(copy, "U.0.2", _nudge)
    assert any("residual of triplet 1 of token 2" in claim.what for claim in verify(copy, tiny).failed)


def test_what_is_not_measured_is_said(run: Run, tiny: LoadedModel) -> None:
    assert "recorded, not measured again: work, times, choices" in str(verify(run, tiny))


def test_other_weights_are_refused(saved: Path, tiny: LoadedModel) -> None:
    import copy as copying

    other = copying.deepcopy(tiny.model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ModelError, match="not those of the run"):
        verify(saved, load_model(other, tiny.tokenizer))


def test_verification_is_plain_data(run: Run, tiny: LoadedModel) -> None:
    record = verify(run, tiny).record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["ok"] is True

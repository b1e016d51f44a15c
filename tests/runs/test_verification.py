"""Verifying a run measures its claims again: sound runs pass, any change that matters fails."""

import copy as copying
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos import detach
from detjac_lanczos.errors import InputError, ModelError, RunFileError
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs import Run, analyze, load_run, loading, verify
from detjac_lanczos.runs.coherence_claims import WORDED, coherence_claims, wording_notes
from detjac_lanczos.runs.schema import first_fault
from detjac_lanczos.solvers.rounding import epsilon, noise_floor
from tests.runs.conftest import forged, harm, tamper
from tests.tiny_llama import PROMPT, with_one_long_direction
from tests.tiny_models import llama
from tests.tiny_models.moe import gpt_oss

pytestmark = pytest.mark.usefixtures("unpainted")


def test_a_sound_run_holds(saved: Path, tiny: LoadedModel) -> None:
    found = verify(saved, tiny)
    assert found.ok, str(found)
    assert len(found.claims) > 6 * 4
    assert not found.failed
    assert "recorded, not measured again: work, times, choices" in str(found)
    record = found.record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["ok"] is True and "notes" not in record


def test_an_ambient_autocast_changes_nothing(run: Run, tiny: LoadedModel) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = analyze(tiny, PROMPT, k=4, method="lanczos", choices=run.record["choices"])
        assert verify(run, tiny).ok
    assert [token.left for token in again.tokens] == [token.left for token in run.tokens]
    assert [token.right for token in again.tokens] == [token.right for token in run.tokens]


def test_the_model_is_loaded_by_its_recorded_name(saved: Path) -> None:
    assert verify(saved).ok


def test_a_run_of_a_live_model_asks_for_that(tmp_path: Path) -> None:
    model = llama(torch.float32)
    folder = analyze((model, None), input_ids=[3, 7, 11], k=2).save(tmp_path / "run")
    with pytest.raises(InputError, match="made with a live model"):
        verify(folder)
    assert verify(folder, (model, None)).ok


@pytest.mark.parametrize("inputs", ["input_ids", "inputs_embeds"])
def test_a_run_without_a_tokenizer_holds_on_a_model_that_brings_one(inputs: str, tiny: LoadedModel) -> None:
    """The recorded name of a live model loads the tokenizer beside it, too."""
    ids = torch.tensor([1, 2, 3, 4])
    given: Any = ids if inputs == "input_ids" else tiny.model.get_input_embeddings()(ids)
    run = analyze(tiny.model, **{inputs: given}, k=1, tokens=[0])
    assert run.record["live"] and run.predictions[0][0].token == f"<{run.predictions[0][0].id}>"
    for model in (None, tiny, (tiny.model, tiny.tokenizer), tiny.model):
        found = verify(run, model)
        assert found.ok, str(found)


def test_a_run_with_a_tokenizer_asks_for_it(run: Run, tiny: LoadedModel) -> None:
    with pytest.raises(
        InputError, match=r"the run had a tokenizer, '\S+' comes without one: give \(model, tokenizer\)$"
    ):
        verify(run, tiny.model)
    assert verify(run, (tiny.model, tiny.tokenizer)).ok


def test_no_name_of_a_run_without_a_tokenizer_can_be_altered_without_failing(tiny: LoadedModel) -> None:
    run = analyze(tiny.model, input_ids=[1, 2, 3], k=1, tokens=[0])

    def rename(record: dict[str, Any]) -> None:
        record["prompt_tokens"][0][1] = "bridge"

    assert not verify(forged(run, rename), tiny).ok


def test_a_live_model_is_taken_as_it_is_where_it_is_the_one(tmp_path: Path) -> None:
    """Loaded in float16, gpt-oss has norms in float32; a live one may have all in float16."""
    model = gpt_oss(torch.float16)
    folder = analyze((model, None), input_ids=[3, 7, 11], k=1, tokens=[2]).save(tmp_path / "run")
    assert verify(folder, (model, None)).ok


def test_a_relative_folder_is_recorded_as_what_it_is(
    saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = Path(load_run(saved).record["model"])
    monkeypatch.chdir(name.parent)
    folder = analyze(name.name, PROMPT, k=2, tokens=[0]).save(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert verify(folder).ok


def test_a_callback_that_is_none_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="callback = 3 cannot be called: give a function of three arguments, or None"):
        verify("no run is looked for", callback=3)  # type: ignore[arg-type]


def test_it_measures_true_residuals(saved: Path, tiny: LoadedModel) -> None:
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


def test_a_search_cut_short_holds_where_its_products_are_much_longer_than_its_values(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding is as long as the products are, of which the values of such a search say little."""
    model = with_one_long_direction(tiny)
    run = analyze(model, PROMPT, k=2, max_products=6, tokens=[1, 2, 3])
    assert all(token.status == "budget" and max(token.residuals[0]) > 4 * token.S[0] for token in run.tokens)
    plain = JacobianBatch.matmat

    def rounded_otherwise(batch: JacobianBatch, blocks: Any) -> list[Tensor]:
        return [(1 + 8 * torch.finfo(product.dtype).eps) * product for product in plain(batch, blocks)]

    monkeypatch.setattr(JacobianBatch, "matmat", rounded_otherwise)
    found = verify(run, model)
    assert found.ok, str(found)


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
        ("U.0.0", lambda U: U * 1e38, "token 0 of prompt 0 that are not finite"),
        ("V.0.0", lambda V: V * 1e20, "token 0 of prompt 0 that are not finite"),
        ("S.0.1", lambda S: -S, "token 1 of prompt 0 that are not finite, values below 0"),
        ("x.0.4", lambda x: x * 1.001, "input of token 4"),
        ("x.0.4", lambda x: x[:-1], "input of token 4"),
        ("y.0", lambda y: -y, "output of prompt 0"),
        ("reconstruction.detached.0", lambda y: y * 1.001, "difference in the reconstruction of prompt 0"),
        ("reconstruction.ordinary.0", lambda y: y * 1.001, "reconstruction of prompt 0 by ordinary Jacobians"),
    ],
)
def test_a_changed_vector_fails(
    copy: Path, tiny: LoadedModel, name: str, change: Callable[[Tensor], Tensor], what: str
) -> None:
    tamper(copy, lambda vectors: vectors.update({name: change(vectors[name])}))
    found = verify(copy, tiny)
    assert not found.ok
    assert any(what in claim.what for claim in found.failed), str(found)
    assert "FAILS" in str(found)


HARMED = (
    (lambda token: token["left"][1][2].__setitem__("token", "gold"), "decoded left vectors of"),
    (lambda token: token["left"][0].reverse(), "decoded left vectors of"),
    (lambda token: token["right"][0].insert(0, token["right"][0].pop()), "decoded right vectors of"),
    (lambda token: token["certificate"].__setitem__("line", "TRIPLETS 400/400"), "its line"),
    (lambda token: token["certificate"].__setitem__("residual", 1e-12), "certified residual of"),
    (lambda token: token["work"].__setitem__("passes", 10**12), "work of the run"),
)


def test_a_changed_record_fails(copy: Path, tiny: LoadedModel) -> None:
    """Each token is harmed in another way."""

    def change_each(record: dict[str, Any]) -> None:
        for token, (change, _) in zip(record["tokens"], HARMED, strict=True):
            change(token)

    harm(copy, change_each)
    failed = [claim.what for claim in verify(copy, tiny).failed]
    for index, (_, what) in enumerate(HARMED):
        named = what if what.startswith("work") else f"token {index}"
        assert any(what in claim and named in claim for claim in failed), what


def test_a_certificate_of_fewer_triplets_than_none_fails(run: Run, tiny: LoadedModel) -> None:
    false = forged(run, lambda record: record["tokens"][0]["certificate"].__setitem__("k", -1))
    assert any("certificate.k" in claim.what for claim in verify(false, tiny).failed)


UNVERIFIABLE = {"advice", "work.passes", "work.seconds", "work.row_sweeps", "work.products_forward"}
"""Parts of a token that only the run knows; of its work the sum is compared, of what converged the status."""


def test_no_part_of_a_token_can_be_altered_without_failing(run: Run, tiny: LoadedModel) -> None:
    """Every part: taken out, emptied or altered. What loads is caught: of six tokens another part each, at once.

    What one claim about all tokens holds is harmed alone.
    """
    parts = [path for path in _leaves(run.record["tokens"][0]) if ".".join(map(str, path)) not in UNVERIFIABLE]
    harms = [(path, how) for path in parts for how in (_lose, _empty, _alter)]
    spared = [(path, how) for path, how in harms if _harmed(run, [(0, path, how)])]
    assert len(spared) > 40
    shared = {path: "work of the run" for path in parts if path[0] == "work" and path[-1] != "probe_products"}
    shared |= {("index",): "options.tokens"} | dict.fromkeys((("id",), ("token",)), "tokens of prompt 0")
    groups = [[(0, *alone)] for alone in spared if alone[0] in shared]
    apart = [one for one in spared if one[0] not in shared]
    groups += [[(i, *one) for i, one in enumerate(apart[start : start + 6])] for start in range(0, len(apart), 6)]
    for group in groups:
        harmed = _harmed(run, group)
        assert harmed is not None, group
        failed = [claim.what for claim in verify(harmed, tiny).failed]
        for index, path, how in group:
            named = shared.get(path, f"token {index} of")
            assert any(named in what for what in failed), (path, how)


def test_no_part_of_a_definition_or_option_can_be_altered_without_failing(run: Run, tiny: LoadedModel) -> None:
    network = detach(tiny, PROMPT)
    places = {"source": "embeddings", "target": "output", "position": -1}
    batch = network.jacobians(**places)
    sound = run.record
    steering = {"block", "memory", "max_products", "seed", "delta", "chat", "add_special_tokens", "source", "position"}
    parts = [("definition", name) for name in sound["definition"]] + [("freeze",), ("route",), ("dtype",)]
    parts += [("options", name) for name in sound["options"].keys() - steering]
    for path in parts:
        for how in (_lose, _empty, _alter):
            record = copying.deepcopy(sound)
            if not how(record, path) or first_fault(record):
                continue
            harmed = Run(record, run.vectors)
            if path[-1] in WORDED and path[0] == "definition":
                (note,) = wording_notes(record, batch)
                assert f"definition.{path[-1]} reads" in note
                continue
            assert not all(claim.holds for claim in coherence_claims(harmed, network, batch, places)), (path, how)


def test_no_narrower_stable_rank_interval_holds(tiny: LoadedModel) -> None:
    run = analyze(tiny, PROMPT, k=4, method="lanczos", max_products=10, tokens=[0, 1])
    narrower = copying.deepcopy(run.record)
    for token in narrower["tokens"]:
        assert token["status"] == "budget"
        token["stable_rank_interval"][1] = token["stable_rank"]
    failed = [claim.what for claim in verify(Run(narrower, run.vectors), tiny).failed]
    assert failed == [f"difference in the stable rank of {token.name}" for token in run.tokens]


def test_other_words_for_the_same_definition_are_told_and_fail_nothing(copy: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["definition"]["input"] = "rows of the table of embeddings"
        record["loading"] = {"revision": "v2", "device_map": "cpu"}

    harm(copy, change)
    found = verify(copy)
    assert found.ok
    assert "loaded with revision='v2', device_map='cpu'" in str(found)
    assert "definition.input reads 'rows of the table of embeddings' in the record" in str(found)
    assert len(found.record["notes"]) == 2


def test_the_position_of_every_prompt_is_recorded(tiny: LoadedModel) -> None:
    prompts = [PROMPT, "bridge out"]
    assert analyze(tiny, prompts, k=1, position=1).record["definition"]["position"] == 1
    run = analyze(tiny, prompts, k=1, tokens=[(1, 0)])
    assert run.record["definition"]["position"] == [5, 1]
    for position, holds in (([5, 1], True), (1, False), (5, False), ([5, 0], False)):
        record = copying.deepcopy(run.record)
        record["definition"]["position"] = position
        assert not first_fault(record)
        assert verify(Run(record, run.vectors), tiny).ok == holds, position
        assert "after the final norm, the last position of each prompt" in Run(record, run.vectors).page()


def test_a_record_cannot_have_code_run(copy: Path) -> None:
    harm(copy, lambda record: record.update(loading={"trust_remote_code": True}))
    with pytest.raises(InputError, match="if you trust it, give load_model"):
        verify(copy)


def _leaves(part: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every number, text and list; of lists the last item."""
    names = list(part) if isinstance(part, dict) else [len(part) - 1] if isinstance(part, list) and part else []
    for name in names:
        yield (name,)
        yield from ((name, *rest) for rest in _leaves(part[name]))


def _lose(record: Any, path: tuple[Any, ...]) -> bool:
    for name in path[:-1]:
        record = record[name]
    return record.pop(path[-1]) is not None


def _empty(record: Any, path: tuple[Any, ...]) -> bool:
    for name in path[:-1]:
        record = record[name]
    before, record[path[-1]] = record[path[-1]], None
    return before is not None


def _alter(record: Any, path: tuple[Any, ...]) -> bool:
    for name in path[:-1]:
        record = record[name]
    before = record[path[-1]]
    altered = {bool: lambda: not before, int: lambda: before + 1, float: lambda: 1.5 * before + 0.01,
               str: lambda: f"{before}x", list: lambda: before[:-1], dict: dict, type(None): lambda: 0.5}  # fmt: skip
    record[path[-1]] = altered[type(before)]()
    return bool(record[path[-1]] != before)


def _harmed(run: Run, harms: Sequence[tuple[int, tuple[Any, ...], Any]]) -> Run | None:
    """Return a run with tokens harmed; None where that changes nothing, or is noticed when the run is loaded."""
    record = copying.deepcopy(run.record)
    changed = [how(record["tokens"][index], path) for index, path, how in harms]
    harmed = Run(record, run.vectors)
    try:
        noticed = first_fault(record) or loading._mismatch(harmed)
    except (KeyError, IndexError):
        return None
    return harmed if all(changed) and not noticed else None


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
        (lambda record: record["predictions"][0].pop(), "predictions after prompt 0"),
        (lambda record: record["reconstructions"][0].update(ordinary_relative_error=0.5), "by ordinary Jacobians"),
        *(
            (lambda record, name=name: record["reconstructions"][0].__setitem__(name, 0.5), name.replace("_", " "))
            for name in ("relative_error", "norm_error", "offset_share", "model_relative_error")
        ),
    ],
)
def test_a_changed_run_fails(copy: Path, tiny: LoadedModel, change: Callable[[dict], None], what: str) -> None:
    harm(copy, change)
    assert any(what in claim.what for claim in verify(copy, tiny).failed)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("orthonormality", lambda loss: [loss[0] + 0.01, loss[1]], "loss of orthonormality, left vectors of token 1"),
        ("orthonormality", lambda loss: [loss[0], loss[1] + 0.01], "loss of orthonormality, right vectors of token 1"),
        ("e_k", lambda residual: residual + 0.1, "block residual of token 1"),
        ("residual", lambda residual: residual + 0.01, "certified residual of token 1"),
        ("adjoint_defect", lambda defect: defect + 0.01, "adjoint defect of token 1"),
        ("clusters", lambda _: [{"indices": [0, 1], "residual": 0.0}], "differences in the clusters of token 1"),
    ],
)
def test_a_certificate_says_no_more_than_was_measured(
    run: Run, tiny: LoadedModel, name: str, change: Callable[[Any], Any], what: str
) -> None:
    def overstate(record: dict[str, Any]) -> None:
        certificate = record["tokens"][1]["certificate"]
        certificate[name] = change(certificate[name])

    assert [claim.what for claim in verify(forged(run, overstate), tiny).failed] == [f"{what} of prompt 0"]


def test_clusters_are_those_that_residuals_join(tiny: LoadedModel) -> None:
    """One is left out, one skips a neighbour, one goes on beyond the last; two have other residuals."""
    run = analyze(tiny, PROMPT, k=4, tol=0.3, method="lanczos")

    def harm_each(record: dict[str, Any]) -> None:
        clusters = [token["certificate"]["clusters"] for token in record["tokens"]]
        assert [cluster[0]["indices"] for cluster in clusters[2:4]] == [[1, 2], [1, 2]]
        del clusters[0][0]
        clusters[1][0]["indices"].append(4)
        clusters[2][0]["indices"] = [1, 3]
        clusters[3][0]["residual"] *= 0.9
        clusters[4][0]["residual"] *= 1.1

    failed = [claim.what for claim in verify(forged(run, harm_each), tiny).failed]
    assert failed == [f"differences in the clusters of {token.name}" for token in run.tokens[:5]]


def test_a_certificate_of_fewer_triplets_understates_no_residual(run: Run, tiny: LoadedModel) -> None:
    """That one triplet less is claimed must not excuse the others from being compared."""

    def understate(record: dict[str, Any]) -> None:
        record["tokens"][1]["status"] = "noise_floor"
        certificate = record["tokens"][1]["certificate"]
        certificate |= {"claimed": certificate["claimed"] - 1, "residual": 1e-12, "e_k": 1e-12}

    failed = {claim.what for claim in verify(forged(run, understate), tiny).failed}
    wanted = {f"{what} of token 1 of prompt 0" for what in ("number of triplets claimed", "block residual")}
    assert wanted <= failed


def test_a_count_that_rounding_decides_excuses_no_understated_residual(tiny: LoadedModel) -> None:
    """With a tolerance that the worst triplet meets by a quarter of the rounding, it may be claimed or not."""
    run = analyze(tiny, PROMPT, k=3, tol=1e-2, method="lanczos", tokens=[1])
    (token,) = run.tokens
    rounding = noise_floor(epsilon(torch.float32), token.singular_values[0], run.record["work"]["passes"])
    worst = [max(pair) for pair in token.residuals]
    pairs = list(zip(worst, token.singular_values, strict=True))
    tol = max((residual + rounding / 4) / value for residual, value in pairs)
    # What the better two have; less than that is more than the best has.
    least = {"e_k": sorted(worst)[1], "residual": sorted(residual / value for residual, value in pairs)[1]}

    def forge(record: dict[str, Any], **changes: float) -> None:
        certificate = record["tokens"][0]["certificate"]
        record["options"]["tol"] = certificate["tol"] = tol
        record["tokens"][0]["status"] = "noise_floor"
        certificate |= {"claimed": 2} | changes

    honest = verify(forged(run, lambda record: forge(record, **least)), tiny)
    assert not [str(claim) for claim in honest.failed if "residual" in claim.what or "number" in claim.what]
    understated = {name: 0.9 * residual for name, residual in least.items()}
    false = verify(forged(run, lambda record: forge(record, **understated)), tiny)
    assert [claim.what.split(" of ")[0] for claim in false.failed if "residual" in claim.what] == [
        "block residual",
        "certified residual",
    ]


@pytest.mark.parametrize(("part", "holds"), [(0.5, True), (3.0, False)])
def test_residuals_may_differ_by_rounding_and_no_more(run: Run, tiny: LoadedModel, part: float, holds: bool) -> None:
    token = run.tokens[1]
    rounding = noise_floor(epsilon(torch.float32), token.singular_values[0], run.record["work"]["passes"])
    j = max(range(4), key=lambda j: max(token.residuals[j]))
    assert max(token.residuals[j]) > 4 * rounding

    def understate(record: dict[str, Any]) -> None:
        record["tokens"][1]["residuals"][j] = [max(0.0, found - part * rounding) for found in token.residuals[j]]

    failed = [claim.what for claim in verify(forged(run, understate), tiny).failed]
    told = [f"residual of triplet {j + 1} of token 1 of prompt 0", "difference in the residuals of token 1 of prompt 0"]
    assert failed == ([] if holds else told)


def test_triplets_that_miss_the_tolerance_of_the_options_are_counted(tiny: LoadedModel) -> None:
    """By the longer of their two residuals, against their own values; with no certificate that counts them, too."""
    run = analyze(tiny, PROMPT, k=3, tol=1e-2, method="lanczos", tokens=[1], certify=None)
    pairs = zip(run.tokens[0].residuals, run.tokens[0].S.tolist(), strict=True)
    relative = sorted(max(pair) / value for pair, value in pairs)
    for missing, tol in ((0, 1.1 * relative[2]), (1, (relative[1] * relative[2]) ** 0.5)):
        false = forged(run, lambda record, to=tol: record["options"].__setitem__("tol", to))
        (short,) = (claim for claim in verify(false, tiny).claims if "short of those claimed" in claim.what)
        assert short.measured == missing


def test_a_small_share_of_softmax_is_compared_by_its_logarithm(run: Run, tiny: LoadedModel) -> None:
    """What rounding may do to logits is a part of a share, however small that is."""
    what = "difference in the decoded left vectors of token 1 of prompt 0"
    allowed = next(claim.allowed for claim in verify(run, tiny).claims if claim.what == what)
    by = 2 * allowed * 2 * float(run.vectors["y.0"].norm())
    last = run.tokens[1].record["left"][0][-1]["score"]
    assert by * last < allowed
    false = forged(run, lambda record: record["tokens"][1]["left"][0][-1].update(score=last * (1 + by)))
    assert [claim.what for claim in verify(false, tiny).failed] == [what]


def test_vectors_of_other_lengths_are_of_another_run(run: Run, tiny: LoadedModel) -> None:
    shortened = {name: run.vectors[name][:-1] for name in ("U.0.2", "V.0.2")}
    with pytest.raises(RunFileError, match=r"token 2 of prompt 0 have lengths 63 and 63, .* 64 × 64: they are of"):
        verify(Run(run.record, run.vectors | shortened), tiny)


def test_more_recorded_passes_excuse_no_residual(copy: Path, tiny: LoadedModel) -> None:
    """The floor of rounding grows with the passes: a forged count must not lift it over a forged vector."""

    def change(record: dict[str, Any]) -> None:
        for work in (record["work"], *(token["work"] for token in record["tokens"])):
            work["passes"] = 10**14

    harm(copy, change)
    tamper(copy, lambda vectors: vectors.update({"U.0.2": _nudge(vectors["U.0.2"])}))
    assert any("residual of triplet 1 of token 2" in claim.what for claim in verify(copy, tiny).failed)


def test_other_weights_are_refused(saved: Path, tiny: LoadedModel) -> None:
    other = copying.deepcopy(tiny.model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ModelError, match=r"the weights of '\S+' are not those of the run"):
        verify(saved, load_model(other, tiny.tokenizer))
    with pytest.raises(ModelError, match=r"', converted from \w+ to float\d\d, are not those of the run"):
        verify(saved, load_model(other.bfloat16(), tiny.tokenizer))

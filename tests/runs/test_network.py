"""A run of a network that is there already is the run of its model, without another pass."""

from pathlib import Path
from typing import Any

import pytest
import torch

from detjac_lanczos import DetachedNetwork, attention, detach, expert, head, layer, mlp, probe
from detjac_lanczos.errors import InputError, ModelError
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.reading import plot_spectra
from detjac_lanczos.reading.page.repeat import command_line, python_call
from detjac_lanczos.runs import analysis, analyze, load_run, verify
from tests import tiny_models
from tests.runs.conftest import assert_same, forged
from tests.tiny_llama import PROMPT
from tests.tiny_models.moe import MOE
from tests.tiny_models.undeclared import stablelm

pytestmark = pytest.mark.usefixtures("one_thread")

EMBEDDINGS = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"prompt": PROMPT, "freeze": "up", "add_special_tokens": False}, {"target": layer(1), "tokens": [1, 3]}),
    "chat": ({"prompt": "bridge of", "chat": True}, {"certify": "complete"}),
    "batch under a budget": (
        {"prompt": [PROMPT, "most of the bridge"], "memory": "1GB", "dtype": "float64"},
        {"position": 1},
    ),
    "padded": (
        {"input_ids": [[0, 0, 5, 6], [3, 4, 5, 6]], "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]]},
        {"source": layer(1), "target": mlp(2), "method": "dense"},
    ),
    "placed": ({"input_ids": [3, 7, 2], "position_ids": [4, 5, 9]}, {"method": "shared_basis"}),
    "embeddings": ({"inputs_embeds": EMBEDDINGS, "freeze": "half"}, {"target": "logits"}),
}


@pytest.fixture(scope="module")
def chatting(tiny_folder: Path) -> LoadedModel:
    """Return the tiny model with a chat template."""
    loaded = load_model(tiny_folder)
    loaded.tokenizer.chat_template = "the {% for turn in messages %}{{ turn['content'] }}{% endfor %} is"
    return loaded


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_run_of_the_model_bit_for_bit(case: str, chatting: LoadedModel, tmp_path: Path) -> None:
    captured, asked = CASES[case]
    asked = {"k": 3, "method": "lanczos"} | asked
    whole = analyze(chatting, **captured, **asked)
    network = detach(chatting, **captured)
    saved = network.save(tmp_path / "network")
    for given in (network, DetachedNetwork.load(saved, network.loaded)):
        run = analyze(given, **asked)
        assert_same(whole, run)
        assert set(run.record["times"]) == {"solve", "read", "total"}
    found = verify(run, chatting)
    assert found.ok, str(found)


def test_so_is_that_of_a_decoder_that_no_family_declares() -> None:
    loaded = tiny_models.loaded(stablelm(torch.float32))
    whole = analyze(loaded, input_ids=[3, 7, 2], k=2, method="lanczos")
    assert_same(whole, analyze(detach(loaded, input_ids=[3, 7, 2]), k=2, method="lanczos"))


@pytest.mark.parametrize("drop", [(), (mlp(1),)])
@pytest.mark.parametrize("target", ["output", mlp(2), "logits"])
def test_what_a_run_holds_is_its_own(drop: tuple[Any, ...], target: Any, tiny: LoadedModel) -> None:
    network = detach(tiny, PROMPT).replace(drop=drop)
    asked: dict[str, Any] = {"k": 1, "tokens": [0, 2], "method": "dense", "target": target}
    run = analyze(network, **asked)
    for vectors in run.vectors.values():
        vectors.zero_()
    J = network.jacobian("joint", target=target)
    J.x.zero_(), J.y.zero_()
    again = analyze(network, **asked)
    assert_same(analyze(detach(tiny, PROMPT).replace(drop=drop), **asked), again)
    assert verify(again, tiny).ok


def test_places_from_the_end_are_recorded_as_they_are(tiny: LoadedModel) -> None:
    options = analyze(tiny, PROMPT, k=1, tokens=0, source=layer(-2), target=layer(-1)).record["options"]
    blocks = detach(tiny, PROMPT).blocks
    assert (options["source"], options["target"]) == (f"layer({blocks - 2})", f"layer({blocks - 1})")


def test_layers_are_not_captured_again(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    network = detach(tiny, PROMPT)
    monkeypatch.setattr(analysis, "detach", None)
    runs = [analyze(network, k=2, tokens=[1], target=layer(block)) for block in range(3)]
    assert [run.record["definition"]["target"] for run in runs] == ["layer(0)", "layer(1)", "layer(2)"]
    assert all(verify(run, tiny).ok for run in runs)


OPTIONS: dict[str, Any] = {
    "prompt": PROMPT,
    "freeze": "gate",
    "chat": False,
    "add_special_tokens": True,
    "input_ids": [1],
    "inputs_embeds": EMBEDDINGS,
    "attention_mask": [1],
    "position_ids": [0],
    "memory": "1GB",
    "dtype": "float32",
    "device": "cpu",
    "quantization": "nf4",
}


def test_what_it_was_captured_with_is_not_given_again(tiny: LoadedModel) -> None:
    network = detach(tiny, PROMPT)
    for name, value in OPTIONS.items():
        with pytest.raises(InputError, match=f"has what it was captured with, and is given more: {name}; leave"):
            analyze(network, **{name: value})
    with pytest.raises(InputError, match="given more: prompt, freeze, dtype;"):
        analyze(network, PROMPT, freeze="up", dtype="float64")


def test_an_operator_is_sent_to_what_takes_it(tiny: LoadedModel) -> None:
    network = detach(tiny, PROMPT)
    for given in (network.jacobian(0), network.jacobians()):
        with pytest.raises(InputError, match=rf"not {type(given).__name__}: svd\(J, k\) .*, analyze\(network\) those"):
            analyze(given)  # type: ignore[arg-type]


def test_a_model_that_has_changed_since_is_refused(tiny_folder: Path) -> None:
    """What decodes vectors, and the fingerprint, would be of other weights than the capture."""
    loaded = load_model(tiny_folder)
    network = detach(loaded, PROMPT)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[0] += 1
    with pytest.raises(ModelError, match="written to"):
        analyze(network, k=2)


ALTERED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "a branch": ([mlp(1)], {"tokens": [0, 4]}),
    "heads and a branch, between layers": (
        [head(0, 1), head(0, -2), attention(1)],
        {"source": layer(1), "target": layer(2), "position": 3},
    ),
    "logits": ([attention(0)], {"target": "logits", "method": "dense"}),
    "probe": ([head(1, 0)], {"target": probe(torch.eye(5, 64))}),
    "survey": ([mlp(0)], {"method": "shared_basis", "polish": 2}),
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_network_has_a_run_that_says_so(case: str, tiny: LoadedModel, tmp_path: Path) -> None:
    drop, asked = ALTERED[case]
    asked = {"k": 3, "method": "lanczos"} | asked
    network = detach(tiny, [PROMPT, "most of the bridge"]).replace(drop=drop)
    run = analyze(network, **asked)
    assert run.record["definition"]["switched_off"] == sorted(network.dropped)
    places = {name: asked[name] for name in ("source", "target", "position") if name in asked}
    for token in run.tokens:
        J = network.jacobian((token.prompt, token.index), **places)
        rest = float((J.matmat(token.V) - token.U * token.S).norm())
        assert token.estimated or rest < 1e-2 * float(token.S[0])
        assert torch.equal(run.vectors[f"y.{token.prompt}"], J.y)
    saved = network.save(tmp_path / "network")
    assert_same(run, analyze(DetachedNetwork.load(saved, tiny), **asked))
    found = verify(run, tiny)
    assert found.ok, str(found)
    unaltered = forged(run, lambda record: record["definition"].pop("switched_off"))
    assert not verify(unaltered, tiny).ok
    others = forged(run, lambda record: record["definition"].update(switched_off=["mlp.2"]))
    assert not verify(others, tiny).ok


@pytest.mark.usefixtures("unpainted")
def test_both_are_saved_read_and_verified_by_the_name_of_the_model(tiny: LoadedModel, tmp_path: Path) -> None:
    network = detach(tiny, PROMPT)
    for given in (network, network.replace(drop=[head(1, 1), mlp(2)])):
        run = analyze(given, k=2, target=layer(2))
        folder = run.save(tmp_path / "run")
        assert_same(run, load_run(folder))
        assert (folder / "report.html").read_text("utf-8") == load_run(folder).page()
        assert verify(folder).ok
        assert (folder / "figures" / "reconstruction.svg").exists() is not given.altered


def test_so_has_one_without_an_expert() -> None:
    loaded = tiny_models.loaded(next(iter(MOE.values()))(torch.float32))
    network = detach(loaded, input_ids=[3, 7, 2])
    used = next(name for name in network.coefficients if ".experts." in name).split(".experts.")
    block, number = int(used[0].split(".")[1]), int(used[1].split(".")[0])
    run = analyze(network.replace(drop=expert(block, number)), k=2)
    assert run.record["definition"]["switched_off"] == [f"expert.{block}.{number}"]
    assert verify(run, loaded).ok


def test_it_is_never_called_that_of_the_model(tiny: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {"k": 3, "method": "lanczos"}
    network = detach(tiny, PROMPT, freeze="up").replace(drop=[mlp(1), head(0, 2)])
    run, whole = analyze(network, **asked), analyze(tiny, PROMPT, freeze="up", **asked)
    off = "head.0.2, mlp.1"
    assert run.record["reconstruction"]["ordinary_relative_error"] is None
    assert run.record["reconstruction"]["model_relative_error"] is None
    assert run.record["prediction"][0]["probability"] == network.prediction[0].probability
    assert run.record["reconstruction"]["relative_error"] is None and run.record["reconstruction"]["norm_error"] is None
    assert " without " in plot_spectra(run.record).get_suptitle()
    for text in (str(run), repr(run), run.page()):
        assert f"without {off}" in text
    assert "which no pass of the model gives" in str(run) and "No pass of the model gives it" in run.page()
    assert (
        "Reconstruction error" not in run.page()
        and "what the altered network says next" in run.page().lower()
        and "the model says" not in run.page()
    )
    for text in (str(whole), repr(whole), whole.page()):
        assert "without" not in text.replace("without an", "") and "altered" not in text
    assert command_line(run.record) is None and command_line(whole.record) is not None
    names: dict[str, Any] = {}
    exec(python_call(run.record), names)
    assert_same(run, names["run"])
    assert off in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mlp.9", "head.0", "head.0.9", "norm.1", "mlp.one", "mlp"])
def test_a_record_of_parts_that_do_not_exist_is_refused(name: str, tiny: LoadedModel) -> None:
    run = forged(analyze(tiny, PROMPT, k=2), lambda record: record["definition"].update(switched_off=[name]))
    with pytest.raises(InputError, match=r"switched off|cannot drop|has heads"):
        verify(run, tiny)


def test_coefficients_that_were_given_are_in_no_record(tiny: LoadedModel, tmp_path: Path) -> None:
    network = detach(tiny, PROMPT)
    name = next(name for name in network.coefficients if name.endswith(".activation"))
    changed = network.replace({name: 2 * network.coefficients[name]}).replace(drop=mlp(2))
    for given in (changed, DetachedNetwork.load(changed.save(tmp_path), tiny)):
        with pytest.raises(InputError, match=f"{name} hold values that were given, and no record of a run says which"):
            analyze(given, k=2)

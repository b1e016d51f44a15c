"""A model quantised as it is loaded: the main job, what a run says of it, and its verification."""

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from detjac_lanczos.cli import main
from detjac_lanczos.cli.parser import _PACKINGS, make_parser
from detjac_lanczos.errors import InputError, ModelError, RunFileError
from detjac_lanczos.models import LoadedModel, load, load_model
from detjac_lanczos.models.fingerprint import fingerprint_of
from detjac_lanczos.models.outline import outline, weight_bytes
from detjac_lanczos.models.quantization import KINDS, load_quantized
from detjac_lanczos.operators import DetachedNetwork, detach
from detjac_lanczos.runs import analyze, load_run, verify
from tests.frozen.test_capture import tensors
from tests.tiny_llama import PROMPT
from tests.tiny_models import DENSE
from tests.tiny_models.packed import quantised


@pytest.mark.parametrize("kind", ["nf4", "FP4-double", "int8"])
def test_a_folder_is_quantised_as_it_is_loaded_in_any_precision(tiny_folder: Path, kind: str) -> None:
    single, double = (load_model(tiny_folder, quantization=kind, dtype=dtype) for dtype in ("float32", "float64"))
    assert single.packing == double.packing is not None
    assert (single.dtype, double.dtype, single.quantization) == (torch.float32, torch.float64, kind.lower())
    assert single.packing.endswith("with double quantisation (bitsandbytes)") == kind.endswith("-double")
    J, exact = (detach(model, PROMPT).jacobian(1) for model in (single, double))
    assert J.definition["weights"] == f"decoded from {single.packing}"
    assert (J.dense().double() - exact.dense()).norm() <= 2e-6 * exact.dense().norm()
    assert load_model(tiny_folder, quantization=kind).fingerprint == single.fingerprint


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_not_packed_is_what_transformers_loads_in_float64(kind: str, tmp_path: Path) -> None:
    """Rotary frequencies, and Gemma's scale of embeddings, are other numbers than those of float32 converted."""
    made = DENSE["Gemma 3"](torch.float32)
    made.save_pretrained(tmp_path)
    expected = tensors(type(made).from_pretrained(tmp_path, dtype=torch.float64))
    found = tensors(load_quantized(str(tmp_path), "it", torch.float64, kind, None, trust_remote_code=False))
    plain = {name for name, value in found.items() if value.is_floating_point()}
    assert {name.rpartition(".")[2] for name in plain} >= {"embed_scale", "full_attention_inv_freq"}
    for name in plain:
        assert found[name].dtype is expected[name].dtype and torch.equal(found[name], expected[name]), name


def test_codes_that_are_stored_as_numbers_are_not_converted(tmp_path: Path) -> None:
    stored = quantised(DENSE["Gemma 3"](torch.float32), "nf4 as bfloat16")
    stored.save_pretrained(tmp_path)
    found = load_quantized(str(tmp_path), "it", torch.float64, "nf4-double", None, trust_remote_code=False)
    weights = [model.model.layers[0].mlp.down_proj.weight for model in (stored, found)]
    assert weights[0].dtype is weights[1].dtype is torch.bfloat16
    assert torch.equal(*(weight.view(torch.uint8) for weight in weights))


def test_a_folder_that_is_quantised_is_loaded_as_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_folder, quantization="nf4")
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert (again.packing, again.fingerprint) == (loaded.packing, loaded.fingerprint)
    assert load_model(tmp_path, quantization="nf4").fingerprint == loaded.fingerprint
    with pytest.raises(InputError, match=r"is stored packed as NF4 \(bitsandbytes\), and stays so"):
        load_model(tmp_path, quantization="nf4-double")


def test_what_cannot_be_quantised_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="'nf5' is not known; use one of nf4, nf4-double, fp4, fp4-double, int8"):
        load_model(tiny_folder, quantization="nf5")
    with pytest.raises(InputError, match="quantization and quantization_config both say"):
        load_model(tiny_folder, quantization="nf4", quantization_config={"load_in_8bit": True})
    live = load_model(tiny_folder)
    for model in (live, (live.model, live.tokenizer)):
        with pytest.raises(InputError, match="a live model is not quantised here"):
            load_model(model, quantization="nf4")
        with pytest.raises(InputError, match="a live model is not quantised here"):
            analyze(model, PROMPT, k=1, quantization="nf4")


def test_an_analysis_packs_the_model_that_it_names(tiny_folder: Path) -> None:
    packed = load_model(tiny_folder, quantization="nf4", dtype="float64")
    options = {"k": 1, "tokens": [1]}
    run = analyze(str(tiny_folder), PROMPT, **options, quantization="nf4", dtype="float64")
    assert (run.record["quantization"], run.record["fingerprint"]) == ("nf4", packed.fingerprint)
    assert run.tokens[0].S.tolist() == analyze(packed, PROMPT, **options).tokens[0].S.tolist()


def test_words_of_the_command_line_are_those_of_the_library() -> None:
    words = ["svd", "Paris", "--quantization", "NF4-double"]
    assert make_parser().parse_args(words).quantization in KINDS
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args([*words[:3], "nf5"])
    assert caught.value.code == 2
    assert _PACKINGS == KINDS


def test_a_network_of_packed_weights_is_saved_and_joined_to_them_again(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_folder, quantization="nf4")
    network = detach(loaded, PROMPT)
    again = DetachedNetwork.load(network.save(tmp_path), load_model(tiny_folder, quantization="nf4"))
    assert torch.equal(network.jacobian(0).dense(), again.jacobian(0).dense())
    module = loaded.model.model.layers[1].mlp.up_proj
    module.weight.quant_state.absmax[0] *= 2
    with pytest.raises(RunFileError, match="other weights"):
        DetachedNetwork.load(tmp_path, load_model(loaded.model, loaded.tokenizer))
    module.weight.quant_state.absmax[0] = float("nan")
    with pytest.raises(ModelError, match=r"up_proj.weight.absmax' holds 1 NaN"):
        load_model(loaded.model, loaded.tokenizer)


def test_the_head_and_the_embedding_are_not_packed(smollm2_in_nf4: LoadedModel) -> None:
    packed = smollm2_in_nf4.model
    outlined, _, _ = outline("smollm2")
    wanted = weight_bytes(outlined, "nf4")
    linear = [module for module in packed.modules() if isinstance(module, Linear4bit)]
    held = sum(m.weight.nbytes + m.weight.quant_state.absmax.nbytes + m.weight.quant_state.code.nbytes for m in linear)
    assert wanted["nf4"] == held
    inside = {id(module.weight) for module in linear}
    assert wanted["float32"] == sum(p.nbytes for p in packed.parameters() if id(p) not in inside)


STANDARD_PROMPT = "The bridge out of Marin is the"


@pytest.mark.usefixtures("unpainted")
def test_the_main_job_in_nf4_verifies(smollm2: LoadedModel, smollm2_in_nf4: LoadedModel, tmp_path: Path) -> None:
    packed = smollm2_in_nf4
    run = analyze(packed, STANDARD_PROMPT, k=2, tokens=[6])
    assert run.record["fingerprint"] == packed.fingerprint != smollm2.fingerprint
    assert run.tokens[0].certificate.line.startswith("TRIPLETS 2/2")
    run.save(tmp_path / "run")
    assert verify(load_run(tmp_path / "run"), packed).ok


@pytest.mark.usefixtures("unpainted")
def test_the_main_job_in_nf4_on_the_command_line(
    gemma3_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading it in NF4 takes the fingerprint of what is unpacked in float32 first, and then that of what is packed."""
    taken: list[str] = []
    monkeypatch.setattr(load, "fingerprint_of", lambda *given: taken.append(fingerprint_of(*given)) or taken[-1])
    words = ["svd", STANDARD_PROMPT, "--model", gemma3_name, "--quantization", "nf4", "--tokens", "6", "-k", "2"]
    assert main([*words, "-q", "--out", str(tmp_path / "run")]) == 0
    assert "weights decoded from NF4 (bitsandbytes) · float32" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["quantization"] == "nf4"
    assert record["definition"]["weights"] == "decoded from NF4 (bitsandbytes)"
    plain, packed = taken
    assert record["fingerprint"] == packed != plain
    assert all(token["certificate"]["line"].startswith("TRIPLETS 2/2") for token in record["tokens"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "of the weights decoded from NF4 (bitsandbytes), computed in float32" in page
    assert "--quantization nf4" in page

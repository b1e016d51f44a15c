"""A model of an undeclared family, from its folder to a verified run."""

import json
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import StableLmConfig, StableLmForCausalLM

from detjac_lanczos.cli import main
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models import load_model
from detjac_lanczos.operators import detach, layer, probe
from detjac_lanczos.reading.head import head_of
from detjac_lanczos.runs import analyze, load_run, verify
from tests.tiny_llama import PROMPT, WORDS, save_tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a StableLM with a tokenizer of twelve words."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("tiny") / "stablelm")
    torch.manual_seed(0)
    config = StableLmConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    StableLmForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"freeze": "up"}, {"target": layer(1), "source": layer(1), "position": 3}, {"target": "logits"}],
    ids=str,
)
def test_a_run_is_decoded_and_verified(folder: Path, options: dict[str, Any]) -> None:
    loaded = load_model(folder)
    run = analyze(loaded, PROMPT, k=3, method="lanczos", **options)
    assert run.converged
    assert run.record["route"] == run.record["definition"]["route"] == "autograd"
    assert run.reconstruction.relative_error < 1e-5
    assert all(len(token.left) == len(token.right) == 3 for token in run.tokens)
    verification = verify(run, loaded)
    assert verification.ok, str(verification)
    flipped = {"V.0.0": run.vectors["V.0.0"].flip(0)}
    assert not verify(replace(run, vectors=run.vectors | flipped), loaded).ok


@pytest.mark.parametrize("target", ["logits", probe(torch.eye(8, 64))], ids=str)
def test_where_no_head_is_needed_none_is_asked_for(folder: Path, target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(folder)
    head = loaded.model.lm_head
    monkeypatch.setattr(head, "forward", MethodType(lambda self, x: x.flip(-1) @ self.weight.T, head))
    with pytest.raises(UnsupportedModelError, match="no multiple of what its head gives"):
        head_of(detach(loaded, PROMPT))
    run = analyze(loaded, PROMPT, k=2, method="lanczos", target=target)
    assert run.converged
    verification = verify(run, loaded)
    assert verification.ok, str(verification)


def test_the_command_line_takes_its_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["svd", PROMPT, "--model", str(folder), "-k", "2", "--out", str(out), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["route"] == "autograd"
    assert load_run(out).record["definition"]["family"] == "StableLmForCausalLM, by its structure"
    assert main(["verify", str(out), "-q"]) == 0
    assert (out / "report.html").stat().st_size > 1000


def test_what_is_not_understood_is_one_line(folder: Path) -> None:
    loaded = load_model(folder)
    convolution = torch.nn.Conv1d(64, 64, 1)
    loaded.model.model.layers[2].mlp = convolution
    with pytest.raises(
        UnsupportedModelError, match=r"not understood: a convolution at model\.layers\.2\.mlp \(Conv1d\)"
    ) as caught:
        analyze(load_model(loaded.model, loaded.tokenizer), PROMPT, k=2)
    assert "\n" not in str(caught.value)

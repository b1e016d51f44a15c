"""A tiny Llama with random weights on disk, and runs of it."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.runs import Run, analyze

WORDS = ["<unk>", "the", "bridge", "out", "of", "town", "is", "only", "<script>", "橋", "جسر", "most"]
PROMPT = "the bridge out of town is"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a Llama of width 64 with 3 blocks, grouped heads and a context of 32."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def run(tiny: LoadedModel) -> Run:
    """Return a run over one prompt."""
    return analyze(tiny, PROMPT, k=4)


@pytest.fixture(scope="session")
def saved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `run`; tests copy it before they harm it."""
    return run.save(tmp_path_factory.mktemp("runs") / "out")

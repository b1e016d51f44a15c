"""Tiny random models with every parameter away from its default, as a folder, live and as a GGUF file."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(29))]


def tiny_llama(seed: int = 0, tied: bool = True) -> Any:
    """Make a two-block Llama whose every parameter is random, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        rms_norm_eps=3e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return model


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def live() -> tuple[Any, Any]:
    return tiny_llama(), tiny_tokenizer()


@pytest.fixture
def folder(tmp_path: Path, live: tuple[Any, Any]) -> Path:
    path = tmp_path / "tiny"
    for part in live:
        part.save_pretrained(path)
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give one test an empty cache folder."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the cache folder follows XDG_CACHE_HOME on Linux only")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "detjac_lanczos" / "unpacked"


@pytest.fixture(scope="session")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a two-block Llama with matrices in Q8_0, a tied head and a byte-pair tokenizer, in one GGUF file."""
    from tests.models.tiny_gguf import write_gguf

    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")

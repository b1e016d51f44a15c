"""A Llama so small that a whole run takes a second, with a tokenizer of twelve words."""

import copy
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from detjac_lanczos.models import LoadedModel, load_model

WORDS = ["<unk>", "the", "bridge", "out", "of", "town", "is", "only", "<script>", "橋", "جسر", "most"]
PROMPT = "the bridge out of town is"


def save_tiny_llama(folder: Path) -> Path:
    """Write a Llama of width 64 with 3 blocks, grouped heads and a context of 32, and return its folder."""
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


def with_one_long_direction(model: LoadedModel) -> LoadedModel:
    """Return a copy whose Jacobians have a first value of many times the rest: hard to find in a few products."""
    spiked = copy.deepcopy(model.model)
    weight = spiked.model.layers[0].mlp.up_proj.weight
    direction = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight += 4 * direction
    return load_model(spiked, model.tokenizer)

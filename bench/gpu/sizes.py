"""What is run: the shapes of a Llama with 70 billion weights, or small ones that show on a CPU that all of it runs."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig


@dataclass(frozen=True)
class Sizes:
    """Everything that differs between a run on a device and a dry one."""

    device: torch.device
    dtype: torch.dtype
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int
    tokens: int
    rows: tuple[int, ...]
    verified_rows: tuple[int, ...]
    copied_bytes: int
    product_size: int
    positions: int

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def config(self) -> LlamaConfig:
        """The configuration of such a Llama."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            num_hidden_layers=self.layers,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            dtype=self.dtype,
        )

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices (f, d) of one block that a sweep reads."""
        return {
            "v": (self.kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, self.hidden),
            "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }

    @property
    def weights(self) -> int:
        """Weights that one sweep through all blocks reads."""
        return self.layers * sum(f * d for f, d in self.matrices.values())


def sizes(dry: bool) -> Sizes:
    """Return the sizes of a real run or of a dry one."""
    if dry:
        return Sizes(
            device=torch.device("cpu"),
            dtype=torch.float32,
            hidden=64,
            intermediate=128,
            heads=2,
            kv_heads=1,
            layers=2,
            vocabulary=64,
            tokens=4,
            rows=(5, 20),
            verified_rows=(9,),
            copied_bytes=1 << 20,
            product_size=64,
            positions=40,
        )
    return Sizes(
        device=torch.device("cuda", torch.cuda.current_device()),
        dtype=torch.bfloat16,
        hidden=8192,
        intermediate=28672,
        heads=64,
        kv_heads=8,
        layers=80,
        vocabulary=128256,
        tokens=8,
        rows=(16, 32, 64, 144, 512, 1024, 2048),
        verified_rows=(1, 24, 50, 200),
        copied_bytes=1 << 30,
        product_size=8192,
        positions=1024,
    )

"""What a network's frozen factors measure, from the shapes of its modules alone: meta tensors will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from detjac_lanczos.errors import UnsupportedModelError


@dataclass(frozen=True)
class GateShape:
    """Frozen factors of one product, all of ``width`` f, made of rows of width ``inputs``.

    ``factors``: how many there are; ``projections``: products of ``inputs`` × f that making them again takes;
    ``biased``: the affine map adds a bias before a factor.
    """

    inputs: int
    width: int
    factors: int
    projections: int
    biased: bool = False


@dataclass(frozen=True)
class ExpertShape:
    """Routed experts of ``width`` f, ``chosen`` for each position; ``gathered`` weights are copied for a product."""

    width: int
    chosen: int
    gathered: int


Attention = Literal["tiled", "math", "eager", "sinks"]
"""How a model's own attention runs: tile by tile, or with whole scores (heads, n, n): in torch's plain arithmetic, in
transformers' "eager" one, or there with a score of its own for a sink of each head."""


@dataclass(frozen=True)
class BlockShape:
    """Frozen factors of one block: attention weights, gates, and for each position ``numbers`` and ``integers``.

    Those of routed ``experts`` are among the numbers. ``made``: numbers that a sweep makes of weights and keeps, 1 + w;
    ``centered``: a norm takes the mean off its input, into rows of their own; ``panel``: numbers of a fused weight that
    a product copies side by side; ``own``: how the model's own attention runs.
    """

    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    gates: tuple[GateShape, ...] = ()
    experts: tuple[ExpertShape, ...] = ()
    numbers: int = 0
    integers: int = 0
    made: int = 0
    centered: bool = False
    panel: int = 0
    own: Attention = "tiled"

    def __add__(self, other: BlockShape) -> BlockShape:
        """Return the factors of both."""
        return BlockShape(
            self.heads or other.heads,
            self.kv_heads or other.kv_heads,
            self.head_dim or other.head_dim,
            self.gates + other.gates,
            self.experts + other.experts,
            self.numbers + other.numbers,
            self.integers + other.integers,
            self.made + other.made,
            self.centered or other.centered,
            max(self.panel, other.panel),
            other.own if self.own == "tiled" else self.own,
        )


NOTHING = BlockShape()


@dataclass(frozen=True)
class NetworkShape:
    """A network before any prompt.

    Attributes
    ----------
    blocks : tuple of BlockShape
    ends : BlockShape
        Of the entry and the tail.
    hidden_size, embedding_size, output_size, vocabulary : int
        Widths of the streams that are kept.
    itemsize : int
        Bytes of a number in the model's precision; frozen factors take at least four.
    scratch : int
        Bytes that packed weights pass through; 0 where no weight is packed.
    parallel : bool
        Whether some branches of a block read one stream.
    masks : int
        Attention masks that a pass makes: blocks behind a window, or chunks, have one of their own.
    """

    blocks: tuple[BlockShape, ...]
    ends: BlockShape
    hidden_size: int
    embedding_size: int
    output_size: int
    vocabulary: int
    itemsize: int
    scratch: int = 0
    parallel: bool = False
    masks: int = 1

    @property
    def wide(self) -> int:
        """Bytes of a number of a frozen factor."""
        return max(self.itemsize, 4)

    @cached_property
    def kinds(self) -> tuple[BlockShape, ...]:
        """Blocks that differ, once each: most models have one kind, or two."""
        return tuple(dict.fromkeys(self.blocks))

    @cached_property
    def made(self) -> int:
        """Bytes that a sweep makes of weights and keeps."""
        return self.wide * (self.ends.made + sum(block.made for block in self.blocks))

    def streams(self, lengths: Sequence[int]) -> int:
        """Bytes of the streams of the forward pass: embeddings, residual streams, outputs, logits."""
        widths = (len(self.blocks) + 1) * self.hidden_size + self.embedding_size + 2 * self.output_size
        return self.itemsize * (sum(lengths) * widths + len(lengths) * self.vocabulary)

    def mixing(self, block: BlockShape, lengths: Sequence[int], *, rebuilt: bool) -> int:
        """Bytes of the attention weights of a block, or of what they are made from again."""
        if not rebuilt:
            return self.wide * block.heads * sum(n * n for n in lengths)
        vectors = self.itemsize * (block.heads + block.kv_heads) * block.head_dim
        return sum(lengths) * (vectors + self.wide * (2 * block.heads + 1) + 8)

    def gates(self, block: BlockShape, lengths: Sequence[int], *, rebuilt: bool) -> int:
        """Bytes of the gates of a block, or of what they are made from again."""
        if rebuilt:
            row = sum(self.itemsize * gate.inputs + self.wide * gate.factors for gate in block.gates)
        else:
            row = sum(self.wide * gate.factors * gate.width for gate in block.gates)
        return sum(lengths) * row

    def rest(self, lengths: Sequence[int]) -> int:
        """Bytes of everything else that is frozen: factors of norms, of routed experts, constants."""
        numbers = self.ends.numbers + sum(block.numbers for block in self.blocks)
        integers = self.ends.integers + sum(block.integers for block in self.blocks)
        return sum(lengths) * (self.wide * numbers + 8 * integers)


def attention_shape(module: Any) -> BlockShape:
    """Return heads of an attention module, and the width of its queries or of its values, whichever is wider.

    Raises
    ------
    UnsupportedModelError
        If it does not say.
    """
    config = getattr(module, "config", None)
    heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
    widths = (getattr(module, name, None) or 0 for name in ("qk_head_dim", "v_head_dim"))
    head_dim = max(widths) or getattr(module, "head_dim", None) or getattr(module, "head_size", None)
    if heads is None or head_dim is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} does not say how many heads it has and how wide they are; leave memory off"
        )
    return BlockShape(heads, heads // getattr(module, "num_key_value_groups", 1), head_dim, own=_own(module))


def _own(module: Any) -> Attention:
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name == "eager":
        return "sinks" if getattr(module, "sinks", None) is not None else "eager"
    # sdpa's fused kernel on a CPU takes queries and values of one width only
    values = getattr(module, "v_head_dim", None)
    return "math" if name == "sdpa" and values and values != getattr(module, "qk_head_dim", values) else "tiled"


def masks_of(config: Any) -> int:
    """Return how many attention masks a decoder of a configuration makes in a pass."""
    kinds = set(getattr(config, "layer_types", None) or [])
    windowed = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    # what has both kinds makes both masks, also where its blocks happen to be all of one
    return 2 if kinds and windowed else max(1, len(kinds))

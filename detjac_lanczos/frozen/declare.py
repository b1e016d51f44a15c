"""What a family file declares: where things lie, and the stages of a block in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from detjac_lanczos.frozen.sizes import NetworkShape
from detjac_lanczos.frozen.words import Freeze, Project, Scale, Word
from detjac_lanczos.frozen.words.choices import shape_of
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.linear_modules import linear_shape
from detjac_lanczos.models.packed_modules import scratch_of


@dataclass(frozen=True)
class Residual:
    """A branch, by its role ("attention" or "mlp"): read the stream, run the words, add to the stream.

    ``output`` is the module whose output is the branch; ``scale`` an attribute of the block that multiplies it before
    the residual add.
    """

    role: str
    words: Sequence[Word]
    output: str
    scale: str | None = None

    @property
    def whole(self) -> Sequence[Word]:
        """The words, and the multiplier after them."""
        return self.words if self.scale is None else (*self.words, Scale(self.scale))


@dataclass(frozen=True)
class Stream:
    """Words that act on the residual stream itself, such as a norm of the sum."""

    words: Sequence[Word]


@dataclass(frozen=True)
class Family:
    """A decoder family.

    Attributes
    ----------
    name : str
    classes : tuple of str
        Class names of the transformers models it serves.
    block : sequence of stages
        A stage is a tuple of branches that read the same stream (parallel blocks have one stage), or a `Stream`.
    tail : sequence of Word
        From the last block to the output, found in the decoder: the final norm.
    entry : sequence of Word
        From the input embeddings to the first block, found in the decoder.
    logits : sequence of Word
        From the output to the logits, found in the causal language model.
    decoder : str
        Path of the module that holds embeddings, blocks and tail.
    causal_model : str
        Path of the causal language model where it is not the model itself.
    blocks : str
        Path of the list of blocks in the decoder.
    when : (str, value), optional
        The family is meant for configurations with this value alone.
    input_definition : str
        What the input embeddings are.
    positions_from_mask : bool
        Whether positions count the real tokens of a padded row; elsewhere the padding on the left counts too.
    """

    name: str
    classes: tuple[str, ...]
    block: Sequence[Sequence[Residual] | Stream]
    tail: Sequence[Word]
    entry: Sequence[Word] = ()
    logits: Sequence[Word] = (Project("lm_head"),)
    decoder: str = "model"
    causal_model: str = ""
    blocks: str = "layers"
    when: tuple[str, Any] | None = None
    input_definition: str = "the rows of the embedding table"
    positions_from_mask: bool = False

    def __post_init__(self) -> None:
        """Check that a role names one branch.

        Raises
        ------
        ValueError
            If two branches of a block have one role.
        """
        roles = [branch.role for branch in self.branches]
        if len(set(roles)) < len(roles):
            raise ValueError(f"{self.name} gives one role to two branches of a block: {', '.join(roles)}")

    def serves(self, class_name: str | None, config: Any) -> bool:
        """Tell whether models of a class with this configuration are among these."""
        return class_name in self.classes and (self.when is None or attrgetter(self.when[0])(config) == self.when[1])

    def decoder_of(self, model: nn.Module) -> Any:
        """Return the module that holds embeddings, blocks and tail."""
        return without_adapters(model).get_submodule(self.decoder)

    def causal_model_of(self, model: nn.Module) -> Any:
        """Return the module in which the way from the output to the logits is found."""
        return without_adapters(model).get_submodule(self.causal_model)

    def blocks_of(self, model: nn.Module) -> Any:
        """Return the list of blocks."""
        return self.decoder_of(model).get_submodule(self.blocks)

    @property
    def block_words(self) -> list[Word]:
        """All words of a block, in order."""
        words: list[Word] = []
        for stage in self.block:
            words += stage.words if isinstance(stage, Stream) else [word for branch in stage for word in branch.words]
        return words

    def shape(self, model: nn.Module, freeze: Freeze) -> NetworkShape:
        """Return what the networks of a model hold; its weights are not read, and may lie on the meta device."""
        whole: Any = without_adapters(model)
        decoder = self.decoder_of(model)
        itemsize = compute_dtype(whole).itemsize
        vocabulary, output = linear_shape(whole.get_output_embeddings())
        return NetworkShape(
            blocks=tuple(shape_of(self.block_words, block, freeze) for block in self.blocks_of(model)),
            ends=shape_of(self.entry, decoder, freeze) + shape_of(self.tail, decoder, freeze),
            hidden_size=whole.config.get_text_config().hidden_size,
            embedding_size=whole.get_input_embeddings().embedding_dim,
            output_size=output,
            vocabulary=vocabulary,
            itemsize=itemsize,
            scratch=scratch_of(whole, itemsize),
            parallel=any(not isinstance(stage, Stream) and len(stage) > 1 for stage in self.block),
        )

    @property
    def branches(self) -> Iterator[Residual]:
        """All branches of a block, in order."""
        return (branch for stage in self.block if not isinstance(stage, Stream) for branch in stage)

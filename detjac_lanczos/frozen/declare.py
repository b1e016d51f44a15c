"""What a family file declares: where things lie, and the stages of a block in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, get_args

from torch import nn

from detjac_lanczos.errors import DetjacError, InputError, UnsupportedModelError
from detjac_lanczos.frozen.places import Role
from detjac_lanczos.frozen.sizes import NetworkShape, masks_of
from detjac_lanczos.frozen.words import Attend, Freeze, Project, Scale, Softcap, Word, require_all
from detjac_lanczos.frozen.words.choices import shape_of
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.linear_modules import linear_shape
from detjac_lanczos.models.packed_modules import scratch_of
from detjac_lanczos.models.text_model import text_config_of, token_table_of


@dataclass(frozen=True)
class Residual:
    """A branch, by its role ("attention" or "mlp"): read the stream, run the words, add to the stream.

    ``output`` is the module whose output is the branch; ``scale`` an attribute of the block, one number, that
    multiplies it before the residual add.
    """

    role: Role
    words: Sequence[Word]
    output: str
    scale: str | None = None

    def __post_init__(self) -> None:
        """Check what the branch alone shows.

        Raises
        ------
        InputError
            If the role is no known one or that of another branch, or the words are no tuple of words.
        """
        if self.role not in get_args(Role):
            raise InputError(f"the role of a branch is 'attention' or 'mlp', not {self.role!r}")
        require_all(Word, self.words, f"the words of the {self.role} branch are a tuple of words")
        if self.role != "attention" and any(isinstance(word, Attend) for word in self.words):
            raise InputError(f"a branch with Attend among its words is the attention branch, not {self.role!r}")

    @property
    def whole(self) -> Sequence[Word]:
        """The words, and the multiplier after them."""
        return self.words if self.scale is None else (*self.words, Scale(self.scale))

    def factor(self, block: nn.Module) -> float:
        """Return the multiplier; 1 where there is none."""
        return 1.0 if self.scale is None else Scale(self.scale).factor(block)


@dataclass(frozen=True)
class Stream:
    """Words that act on the residual stream itself, such as a norm of the sum."""

    words: Sequence[Word]

    def __post_init__(self) -> None:
        """Check that the words are a tuple of words; :class:`InputError` if not."""
        require_all(Word, self.words, "a Stream is made of a tuple of words")


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
    logits : sequence of Word or Softcap
        From the output to the logits, found in the causal language model; nothing is recorded there in a capture.
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
    logits: Sequence[Word | Softcap] = (Project("lm_head"),)
    decoder: str = "model"
    causal_model: str = ""
    blocks: str = "layers"
    when: tuple[str, Any] | None = None
    input_definition: str = "the rows of the embedding table"
    positions_from_mask: bool = False

    def __post_init__(self) -> None:
        """Check what the declaration alone shows.

        Raises
        ------
        InputError
            If a part is not of its kind, two branches of a block have one role, or nothing leads to the logits.
        """
        require_all(str, self.classes, f"the classes of {self.name} are a tuple of names")
        require_all(object, self.block, f"the block of {self.name} is a tuple of stages")
        for stage in self.block:
            if not isinstance(stage, Stream):
                require_all(Residual, stage, f"a stage of {self.name} is a Stream or a tuple of Residuals")
        for part, kind in (("entry", Word), ("tail", Word), ("logits", Word | Softcap)):
            require_all(kind, getattr(self, part), f"{part} of {self.name} is a tuple of words")
        if not self.logits:
            raise InputError(f'logits of {self.name} is empty; the head alone is (Project("lm_head"),)')
        if self.when is not None and (isinstance(self.when, str) or len(self.when) != 2):
            raise InputError(
                f"when of {self.name} is an attribute of the configuration and its value, not {self.when!r}"
            )
        roles = [branch.role for branch in self.branches]
        if len(set(roles)) < len(roles):
            raise InputError(f"{self.name} gives one role to two branches of a block: {', '.join(roles)}")

    def serves(self, class_name: str | None, config: Any) -> bool:
        """Tell whether models of a class with this configuration are among these.

        Raises
        ------
        InputError
            If the configuration of such a class lacks what tells.
        """
        if class_name not in self.classes or self.when is None:
            return class_name in self.classes
        attribute, value = self.when
        try:
            return bool(attrgetter(attribute)(config) == value)
        except AttributeError as error:
            raise InputError(f"when of {self.name} names what {class_name} has not: {error}") from error

    @contextmanager
    def fits(self, where: str, what: str = "") -> Iterator[None]:
        """Say in one line that a module is not what the declaration, or ``what`` is written in it, takes it for.

        Raises
        ------
        UnsupportedModelError
        """
        try:
            yield
        except DetjacError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            reason = f"{what}: {error}" if what else error
            raise UnsupportedModelError(f"{where.rstrip('.')} is not built as {self.name} is: {reason}") from error

    def decoder_of(self, model: nn.Module) -> Any:
        """Return the module that holds embeddings, blocks and tail."""
        return self._inside(without_adapters(model), "decoder")

    def causal_model_of(self, model: nn.Module) -> Any:
        """Return the module in which the way from the output to the logits is found."""
        return self._inside(without_adapters(model), "causal_model")

    def blocks_of(self, model: nn.Module) -> Any:
        """Return the list of blocks."""
        return self._inside(self.decoder_of(model), "blocks", nn.ModuleList)

    def _inside(self, module: nn.Module, field: str, kind: type[nn.Module] = nn.Module) -> Any:
        path = getattr(self, field)
        with self.fits(type(module).__name__, f"{field}={path!r}"):
            found = module.get_submodule(path)
            if not isinstance(found, kind):
                raise TypeError(f"that is a {type(found).__name__}, not a {kind.__name__}")
        return found

    def branch(self, role: str) -> Residual:
        """Return the branch of a role.

        Raises
        ------
        InputError
            If blocks have none.
        """
        found = next((branch for branch in self.branches if branch.role == role), None)
        if found is None:
            raise InputError(f"where the {role} branch of {self.name} ends is not known; target layer(l)")
        return found

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
        blocks = []
        for index, block in enumerate(self.blocks_of(model)):
            with self.fits(f"blocks.{index}"):
                blocks.append(shape_of(self.block_words, block, freeze))
        with self.fits(type(decoder).__name__):
            ends = shape_of(self.entry, decoder, freeze) + shape_of(self.tail, decoder, freeze)
        return NetworkShape(
            blocks=tuple(blocks),
            ends=ends,
            hidden_size=text_config_of(whole).hidden_size,
            embedding_size=token_table_of(whole).weight.shape[1],
            output_size=output,
            vocabulary=vocabulary,
            itemsize=itemsize,
            scratch=scratch_of(whole, itemsize),
            parallel=any(not isinstance(stage, Stream) and len(stage) > 1 for stage in self.block),
            masks=masks_of(text_config_of(whole)),
        )

    @property
    def branches(self) -> Iterator[Residual]:
        """All branches of a block, in order."""
        return (branch for stage in self.block if not isinstance(stage, Stream) for branch in stage)

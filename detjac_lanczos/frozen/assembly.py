"""From a family's declaration and captured coefficients to the stages of a network, before anything is folded."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.capture import Streams
from detjac_lanczos.frozen.declare import Family, Stream
from detjac_lanczos.frozen.maps import Map
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.sweep import linear_part
from detjac_lanczos.frozen.widths import width_after
from detjac_lanczos.frozen.words import Freeze, Word, as_written


def assemble(
    family: Family,
    model: Any,
    coefficients: Mapping[str, Tensor],
    freeze: Freeze,
    dropped: AbstractSet[str],
    streams: Streams,
) -> Iterator[Stage]:
    """Yield the stages in order: the entry (block −1), the blocks, the tail (one block more).

    Parameters
    ----------
    family : Family
    model : torch.nn.Module
        Whose modules hold the weights.
    coefficients : mapping of str to Tensor
    freeze : {"gate", "up", "half"}
    dropped : set of str
        Branches named here lose their biases; what else they held is zero in ``coefficients``.
    streams : Streams
        Whose widths the chains must have.

    Raises
    ------
    UnsupportedModelError
        If the forward pass did not show a coefficient that the declaration names, a module has not what it names, or
        rows come to a word that takes others.
    """
    hidden = streams.residual[0].shape[1]

    def chain(
        words: Sequence[Word], module: Any, prefix: str, width: int = hidden, end: int = hidden
    ) -> tuple[Map, ...]:
        maps: list[Map] = []
        for word in words:
            try:
                with family.fits(prefix, as_written(word)):
                    steps = word.maps(module, prefix, coefficients, freeze)
                    width = width_after(steps, width)
            except KeyError as missing:
                raise UnsupportedModelError(
                    f"{missing.args[0]} was not seen in the forward pass: this model does not call its modules as "
                    f"{family.name} does"
                ) from None
            maps += steps
        with family.fits(prefix, as_written(words)):
            if width != end:
                raise ValueError(f"this gives rows {width} wide, and {end} are wanted")
        return tuple(maps)

    def on_stream(name: str, maps: tuple[Map, ...], block: int) -> Stage:
        return Stage((Branch(name, maps),), residual=False, block=block)

    decoder, blocks = family.decoder_of(model), list(family.blocks_of(model))
    entry = chain(family.entry, decoder, "entry.", width=streams.embeddings.shape[1])
    if family.entry:
        yield on_stream("entry", entry, -1)
    for index, block in enumerate(blocks):
        prefix = f"blocks.{index}."
        for stage in family.block:
            if isinstance(stage, Stream):
                yield on_stream(f"stream.{index}", chain(stage.words, block, prefix), index)
                continue
            branches = []
            for branch in stage:
                name = f"{branch.role}.{index}"
                maps = chain(branch.whole, block, prefix)
                branches.append(Branch(name, linear_part(maps) if name in dropped else maps))
            yield Stage(tuple(branches), block=index)
    yield on_stream("output", chain(family.tail, decoder, "final.", end=streams.output.shape[1]), len(blocks))

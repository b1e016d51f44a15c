"""From a family's declaration and captured coefficients to the stages of a network, before anything is folded."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.declare import Family, Stream
from detjac_lanczos.frozen.maps import Map
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.sweep import linear_part
from detjac_lanczos.frozen.words import Freeze, Word
from detjac_lanczos.frozen.words.choices import chain_maps


def assemble(
    family: Family, model: Any, coefficients: Mapping[str, Tensor], freeze: Freeze, dropped: AbstractSet[str]
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

    Raises
    ------
    UnsupportedModelError
        If the forward pass did not show a coefficient that the declaration names, or a module has not what it names.
    """

    def chain(words: Sequence[Word], module: Any, prefix: str) -> tuple[Map, ...]:
        try:
            return tuple(chain_maps(words, module, prefix, coefficients, freeze))
        except KeyError as missing:
            raise UnsupportedModelError(
                f"{missing.args[0]} was not seen in the forward pass: this model does not call its modules as "
                f"{family.name} does"
            ) from None
        except AttributeError as error:
            raise otherwise(prefix, error) from error

    def otherwise(prefix: str, error: AttributeError) -> UnsupportedModelError:
        return UnsupportedModelError(f"{prefix.rstrip('.')} is not built as {family.name} is: {error}")

    def on_stream(name: str, words: Sequence[Word], module: Any, prefix: str, block: int) -> Stage:
        return Stage((Branch(name, chain(words, module, prefix)),), residual=False, block=block)

    decoder, blocks = family.decoder_of(model), list(family.blocks_of(model))
    if family.entry:
        yield on_stream("entry", family.entry, decoder, "entry.", -1)
    for index, block in enumerate(blocks):
        prefix = f"blocks.{index}."
        for stage in family.block:
            if isinstance(stage, Stream):
                yield on_stream(f"stream.{index}", stage.words, block, prefix, index)
                continue
            branches = []
            for branch in stage:
                try:
                    block.get_submodule(branch.output)
                except AttributeError as error:
                    raise otherwise(prefix, error) from error
                name = f"{branch.role}.{index}"
                maps = chain(branch.whole, block, prefix)
                branches.append(Branch(name, linear_part(maps) if name in dropped else maps))
            yield Stage(tuple(branches), block=index)
    yield on_stream("output", family.tail, decoder, "final.", len(blocks))

"""What a network takes from its model that neither its coefficients nor the weights show: layout, heads and numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from operator import attrgetter

from torch import nn

from detjac_lanczos.frozen.maps import ColumnScale, Linear, Map, Mix, Nested
from detjac_lanczos.frozen.network import FrozenNetwork
from detjac_lanczos.frozen.said import flat
from detjac_lanczos.frozen.stage import Stage
from detjac_lanczos.frozen.words import ActivatedMLP, GatedMLP, LayerNorm, Project, RMSNorm, Softcap, Word
from detjac_lanczos.frozen.words.norms import declared_eps
from detjac_lanczos.frozen.words.parts import PartOf
from detjac_lanczos.models.adapters import running_module
from detjac_lanczos.models.decoded import runs_of
from detjac_lanczos.models.linear_modules import linear_shape


def setup_of(network: FrozenNetwork) -> dict[str, str]:
    """Return a digest for the entry, each block, the tail and the way to the logits, by name.

    Two models with the same weights give the same digests where their configurations, and what was set in place since,
    make the same maps of the same coefficients, from norms and activations that are the same functions.

    Raises
    ------
    UnsupportedModelError
        If the coefficients do not fit the model's modules.
    """
    family, model, stages = network.family, network.model_of_pass, network.stages
    decoder, blocks = family.decoder_of(model), family.blocks_of(model)
    told = {"the entry": [*_of_words(family.entry, decoder)]}
    told |= {f"block {i}": [*_of_words(family.block_words, block)] for i, block in enumerate(blocks)}
    told["the tail"] = [*_of_words(family.tail, decoder)]
    names = list(told)
    for stage in stages:
        told[names[stage.block + 1]] += _of_stage(stage)
    told["the way to the logits"] = [*_of_reading(network)]
    return {name: hashlib.sha256("\n".join(lines).encode()).hexdigest() for name, lines in told.items()}


def _of_stage(stage: Stage) -> Iterator[str]:
    yield "added to the stream" if stage.residual else "in place of the stream"
    for branch in stage.branches:
        yield branch.name
        yield from _of_chain(branch.chain)


def _of_chain(chain: Sequence[Map]) -> Iterator[str]:
    for step in chain:
        yield type(step).__name__
        match step:
            case ColumnScale(w=number) if number.ndim == 0:
                yield repr(number.item())
            case Linear():
                yield str(step.weight.shape)
            case Mix():
                yield f"{step.heads} heads, {step.kv_heads} of values"
            case Nested():
                for part in step.chains:
                    yield from ("(", *_of_chain(part), ")")


def _of_words(words: Sequence[Word], module: nn.Module) -> Iterator[str]:
    """Yield what maps do not show: the functions that were frozen, and which rows of a weight are taken."""
    for word in flat(words, module):
        match word:
            case RMSNorm() | LayerNorm():
                yield f"eps {declared_eps(running_module(module.get_submodule(word.path)))}"
            case GatedMLP() | ActivatedMLP():
                yield repr(module.get_submodule(word.activation))
            case Project(path=path, part=part) if part is not None:
                yield _rows_taken(part, module.get_submodule(path), module.get_submodule(path.rpartition(".")[0]))


def _rows_taken(part: PartOf, linear: nn.Module, owner: nn.Module) -> str:
    return str(runs_of(lambda rows: part(rows, owner), linear_shape(linear)[0]))


def _of_reading(network: FrozenNetwork) -> Iterator[str]:
    model = network.family.causal_model_of(network.model_of_pass)
    for word in network.family.logits:
        if isinstance(word, Softcap):
            yield f"cap {attrgetter(word.attribute)(model)}"
        else:
            yield from _of_chain(word.maps(model, "", {}, network.freeze))

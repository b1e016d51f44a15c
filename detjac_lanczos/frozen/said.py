"""What a network makes constant, and what follows its last block, in words: read off the declaration and its model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

from torch import nn

from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.words import (
    ActivatedMLP,
    Attend,
    Either,
    Freeze,
    GatedMLP,
    LayerNorm,
    Plus,
    Project,
    RMSNorm,
    RoutedExperts,
    Softcap,
    Word,
)
from detjac_lanczos.frozen.words.product import ClampedSwish

Kinds = Collection[type]
"""Classes of words, and of products in them that freeze more than a gated product does."""


@dataclass(frozen=True)
class Factor:
    """What words of a kind freeze: its name in a table, and in whole words with each choice of the frozen factor."""

    name: str
    gate: str
    up: str = ""
    half: str = ""

    def said(self, freeze: Freeze) -> str:
        """Return the whole words."""
        return {"gate": self.gate, "up": self.up, "half": self.half}[freeze] or self.gate


FACTORS: dict[type, Factor] = {
    RMSNorm: Factor("1/rms", "1/rms of every RMS norm"),
    LayerNorm: Factor("1/std", "1/std of every layer norm (taking off its mean is linear)"),
    Attend: Factor("P", "every attention weight, with all that leads to it (windows, softcaps and sinks too, if any)"),
    GatedMLP: Factor(
        "act(gate)",
        "the activation act(gate x) of every gated MLP, so that its up projection stays linear",
        "the up projection of every gated MLP, with act(z) taken as (act(z)/z) z, so that its gate path stays linear",
        "in every gated MLP, each of its two factors in turn; the map is the mean of both",
    ),
    ActivatedMLP: Factor("act(z)/z", "the ratio act(z)/z of every MLP without a gate, so that z stays linear"),
    RoutedExperts: Factor(
        "routing and act(gate) of experts",
        "the routing of experts, and the activation act(gate x) in each",
        "the routing of experts, and the up projection in each, with act(z) taken as (act(z)/z) z",
        "the routing of experts, and in each its two factors in turn; the map is the mean of both",
    ),
    ClampedSwish: Factor(
        "clamps of up in experts",
        "which entries of the experts' up projections are clamped",
        "the experts' up projections as clamp(u) + 1",
        "which entries of the experts' up projections are clamped, and these projections as clamp(u) + 1",
    ),
    Softcap: Factor("softcap ratio of logits", "the ratio c tanh(z/c)/z of the logits' softcap"),
}
"""By kind of word, in the order in which they are told."""


def frozen_kinds(family: Family, model: nn.Module | None = None) -> Kinds:
    """Return the kinds of words that freeze something in a family, or in one model of it."""
    if model is None:
        words = chain(*(flat(part) for part in (family.entry, family.block_words, family.tail)), family.logits)
    else:
        decoder, causal = family.decoder_of(model), family.causal_model_of(model)
        inside = chain(*(flat(family.block_words, block) for block in family.blocks_of(model)))
        bends = (w for w in family.logits if isinstance(w, Softcap) and attrgetter(w.attribute)(causal) is not None)
        words = chain(flat(family.entry, decoder), inside, flat(family.tail, decoder), bends)
    found = list(words)
    products = {type(word.product) for word in found if isinstance(word, RoutedExperts)}
    return ({type(word) for word in found} | products) & FACTORS.keys()


def frozen_in_words(kinds: Kinds, freeze: Freeze) -> str:
    """Return what is frozen by words of these kinds."""
    return "; ".join(factor.said(freeze) for kind, factor in FACTORS.items() if kind in kinds)


def tail_in_words(family: Family, model: nn.Module) -> str:
    """Return what lies between the last block of a model and its output; empty where nothing does."""
    kinds = {type(word) for word in flat(family.tail, family.decoder_of(model))}
    norm, projection = not {RMSNorm, LayerNorm}.isdisjoint(kinds), Project in kinds
    return " and ".join(["the final norm"] * norm + ["the output projection"] * projection)


def flat(words: Sequence[Word], module: nn.Module | None = None) -> Iterator[Word]:
    """Yield words, those inside other words included; of choices those that a module has, or all."""
    for word in words:
        match word:
            case Either():
                yield from flat([*word.present, *word.absent] if module is None else word.chosen(module), module)
            case Plus():
                yield from flat([inner for words in word.chains for inner in words], module)
            case _:
                yield word

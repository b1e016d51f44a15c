"""Words made of words: what a block has, or two paths on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from detjac_lanczos.frozen.maps import Map, Sum
from detjac_lanczos.frozen.sizes import NOTHING, BlockShape
from detjac_lanczos.frozen.tape import Tape
from detjac_lanczos.frozen.words.word import Coefficients, Freeze, Word, require_all


@dataclass(frozen=True)
class Either:
    """The first words where the block has a module at ``path``, the others where it has not."""

    path: str
    present: Sequence[Word]
    absent: Sequence[Word] = ()

    def __post_init__(self) -> None:
        """Check that both are tuples of words; :class:`InputError` if not."""
        for words in (self.present, self.absent):
            require_all(Word, words, f"Either({self.path!r}) takes tuples of words")

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Observe what the block has."""
        for word in self.chosen(block):
            word.observe(block, name, record, freeze)

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Return what the words that the block has freeze."""
        return shape_of(self.chosen(block), block, freeze)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the maps of what the block has."""
        return chain_maps(self.chosen(block), block, name, coefficients, freeze)

    def chosen(self, block: nn.Module) -> Sequence[Word]:
        """Return the words for a block."""
        return self.present if has_module(block, self.path) else self.absent


@dataclass(frozen=True)
class Plus:
    """The sum of several chains of words on the same rows."""

    chains: Sequence[Sequence[Word]]

    def __post_init__(self) -> None:
        """Check that the chains are tuples of words; :class:`InputError` if not."""
        require_all(tuple, self.chains, "Plus takes a tuple of chains")
        for words in self.chains:
            require_all(Word, words, "a chain of Plus is a tuple of words")

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Observe every chain."""
        for words in self.chains:
            for word in words:
                word.observe(block, name, record, freeze)

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """Return what all chains freeze."""
        return shape_of([word for words in self.chains for word in words], block, freeze)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the sum of the chains."""
        return [Sum(tuple(tuple(chain_maps(words, block, name, coefficients, freeze)) for words in self.chains))]


def chain_maps(
    words: Sequence[Word], block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze
) -> list[Map]:
    """Return the maps of several words, one after another."""
    return [step for word in words for step in word.maps(block, name, coefficients, freeze)]


def shape_of(words: Sequence[Word], module: nn.Module, freeze: Freeze) -> BlockShape:
    """Return what several words freeze in a module; branches that read the same norm record it once."""
    return sum((word.shape(module, freeze) for i, word in enumerate(words) if word not in words[:i]), NOTHING)


def has_module(block: nn.Module, path: str) -> bool:
    """Tell whether there is a module at a path; an attribute set to None is none."""
    try:
        return isinstance(block.get_submodule(path), nn.Module)
    except AttributeError:
        return False

"""The words of a family file: which modules hold which weights and which values are frozen.

Each word names a module by its path inside a block, says what to observe there during the one forward pass, and which
primitive maps it becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from detjac_kernels import rms_reciprocal
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.activations import ratio
from detjac_lanczos.frozen.attention import observe_attention
from detjac_lanczos.frozen.maps import Bias, ColumnScale, Gate, Linear, Map, Mix, RowScale, Sum
from detjac_lanczos.models.weights import weight_of

Freeze = Literal["gate", "up", "half"]
Record = Callable[[str, Tensor], None]
Coefficients = Mapping[str, Tensor]


class Word(Protocol):
    """One entry of a branch."""

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Set hooks on a block of the structural copy that record what is frozen here."""

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the primitive maps, from the caller's own weights and the recorded coefficients."""


class NormWord(Word, Protocol):
    """A word that is a single norm module."""

    @property
    def path(self) -> str:
        """Path of the module."""


@dataclass(frozen=True)
class RMSNorm:
    """x → w ∘ x / rms(x), with 1/rms frozen; ``plus_one`` where the module multiplies by 1 + weight."""

    path: str
    plus_one: bool = False

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Record 1/rms of the norm's input: (positions,)."""
        module = block.get_submodule(self.path)
        eps = norm_eps(module, f"{name}{self.path}")

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            record(f"{name}{self.path}.rstd", rms_reciprocal(args[0], eps))

        module.register_forward_pre_hook(hook)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the frozen row scale and the weight."""
        weight = block.get_submodule(self.path).weight
        if not isinstance(weight, Tensor):
            raise UnsupportedModelError(f"{name}{self.path} has no weight; this is not the norm its family declares")
        w = weight.detach()
        if self.plus_one:
            w = 1 + w.to(torch.promote_types(w.dtype, torch.float32))
        return [RowScale(coefficients[f"{name}{self.path}.rstd"]), ColumnScale(w)]


@dataclass(frozen=True)
class Project:
    """x → x Wᵀ + b: a linear module."""

    path: str

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Nothing is frozen in a linear module."""

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the weight, in place, and its bias where it has one."""
        return linear_maps(block, self.path, name)


@dataclass(frozen=True)
class Attend:
    """Values → P values per head, with the attention weights P frozen."""

    path: str

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Record P: (heads, positions, positions)."""

        def show(probabilities: Tensor) -> None:
            if (probabilities.triu(1) > 0).any():
                raise UnsupportedModelError(
                    f"{name}{self.path} attends to later positions; only causal models are served"
                )
            record(f"{name}{self.path}.mixing", probabilities)

        observe_attention(block.get_submodule(self.path), show)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the mixing of every prompt."""
        prefix = f"{name}{self.path}.mixing."
        keys = sorted((key for key in coefficients if key.startswith(prefix)), key=lambda key: int(key[len(prefix) :]))
        probabilities = tuple(coefficients[key] for key in keys)
        groups = getattr(block.get_submodule(self.path), "num_key_value_groups", 1)
        return [Mix(probabilities, kv_heads=probabilities[0].shape[0] // groups)]


@dataclass(frozen=True)
class GatedMLP:
    """x → act(gate x) ∘ (up x), with one factor frozen (or, ``freeze="half"``, the mean of the two maps)."""

    gate: str
    up: str
    activation: str

    def observe(self, block: nn.Module, name: str, record: Record, freeze: Freeze) -> None:
        """Record act(z) for ``gate``, act(z)/z ∘ u for ``up``, half of both for ``half``: (positions, f)."""
        act = block.get_submodule(self.activation)
        share = 0.5 if freeze == "half" else 1.0
        kept: dict[str, Tensor] = {}

        def after_gate(_: nn.Module, args: tuple[Any, ...], z: Tensor) -> None:
            if freeze in ("gate", "half"):
                record(f"{name}{self.gate}.activation", share * act(z))
            if freeze in ("up", "half"):
                kept["ratio"] = ratio(act, z)

        def after_up(_: nn.Module, args: tuple[Any, ...], u: Tensor) -> None:
            record(f"{name}{self.up}.factor", share * kept.pop("ratio") * u)

        block.get_submodule(self.gate).register_forward_hook(after_gate)
        if freeze in ("up", "half"):
            block.get_submodule(self.up).register_forward_hook(after_up)

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the linear factor and the frozen one."""
        if freeze == "gate":
            return [*linear_maps(block, self.up, name), Gate(coefficients[f"{name}{self.gate}.activation"])]
        if freeze == "up":
            return [*linear_maps(block, self.gate, name), Gate(coefficients[f"{name}{self.up}.factor"])]
        halves = (
            (self.up, coefficients[f"{name}{self.gate}.activation"]),
            (self.gate, coefficients[f"{name}{self.up}.factor"]),
        )
        return [Sum(tuple((*linear_maps(block, path, name), Gate(factor)) for path, factor in halves))]


def linear_maps(block: nn.Module, path: str, name: str) -> list[Map]:
    """Return the maps of a linear module: its weight in place and its bias."""
    module = block.get_submodule(path)
    maps: list[Map] = [Linear(weight_of(module, f"{name}{path}"))]
    bias = module.bias
    return maps if not isinstance(bias, Tensor) else [*maps, Bias(bias.detach())]


def norm_eps(module: nn.Module, name: str) -> float:
    """Return the epsilon of an RMS norm.

    Raises
    ------
    UnsupportedModelError
        If the module is some other norm, or has no epsilon.
    """
    if not type(module).__name__.endswith("RMSNorm"):
        raise UnsupportedModelError(f"{name} is a {type(module).__name__}, not the RMS norm its family declares")
    for attribute in ("variance_epsilon", "eps"):
        eps = getattr(module, attribute, None)
        if isinstance(eps, float):
            return eps
    raise UnsupportedModelError(
        f"{name} ({type(module).__name__}) has no epsilon; this is not the norm its family declares"
    )


@dataclass(frozen=True)
class Residual:
    """A branch, by its role ("attention" or "mlp"): read the stream, run the words, add to the stream.

    ``output`` is the module whose output is the branch before its residual add.
    """

    role: str
    words: Sequence[Word]
    output: str


@dataclass(frozen=True)
class Family:
    """A decoder family: class names it serves, where things lie, and the stages of a block in order.

    ``block`` is a sequence of stages; the branches of one stage read the same stream (parallel blocks have one stage).
    """

    name: str
    classes: tuple[str, ...]
    block: Sequence[Sequence[Residual]]
    final_norm: NormWord
    decoder: str = "model"
    blocks: str = "layers"
    embeddings: str = "embed_tokens"
    head: str = "lm_head"
    input_definition: str = "the rows of the embedding table"

"""Where each family of transformers keeps its parts, and how its MLPs are frozen: written from the modules' source.

The oracles look a model up by its class name in `STRUCTURES`. Paths are module paths; nothing here is shared with the
library.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Freezer = Callable[[Tensor], Tensor]
FreezeMLPs = Callable[[Any, str, Freezer], AbstractContextManager[None]]


@dataclass(frozen=True)
class Branch:
    """A module in a block whose output (the first of a tuple) is added to the stream, times a number of the block."""

    path: str
    multiplier: str | None = None

    def scale(self, block: nn.Module) -> float:
        return 1.0 if self.multiplier is None else float(getattr(block, self.multiplier))


def activations(*paths: str) -> FreezeMLPs:
    """Un-gated MLPs: act(z) = (act(z)/z) z with the ratio frozen, in the activations at these paths of a block."""

    @contextmanager
    def freeze_mlps(model: Any, freeze: str, freezer: Freezer) -> Iterator[None]:
        modules = [block.get_submodule(path) for block in blocks_of(model) for path in paths]
        with replaced_forwards(modules, lambda act: partial(frozen_activation, act.forward, freezer)):
            yield

    return freeze_mlps


@contextmanager
def gated(model: Any, freeze: str, freezer: Freezer) -> Iterator[None]:
    """Gated MLPs of three linear modules."""

    def forward_of(mlp: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: mlp.down_proj(gated_product(mlp.act_fn, freeze, freezer, mlp.gate_proj(x), mlp.up_proj(x)))

    with replaced_forwards((block.mlp for block in blocks_of(model)), forward_of):
        yield


@contextmanager
def fused(model: Any, freeze: str, freezer: Freezer) -> Iterator[None]:
    """Gated MLPs whose gate and up are the halves of one linear module."""

    def forward_of(mlp: Any) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            z, u = mlp.gate_up_proj(x).tensor_split(2, dim=-1)
            return mlp.down_proj(gated_product(mlp.activation_fn, freeze, freezer, z, u))

        return forward

    with replaced_forwards((block.mlp for block in blocks_of(model)), forward_of):
        yield


@dataclass(frozen=True)
class Structure:
    """Where a family keeps its parts: the decoder in the model, the blocks in the decoder, the branches in a block."""

    decoder: str = "model"
    blocks: str = "layers"
    attention: Branch = Branch("self_attn")
    mlp: Branch = Branch("mlp")
    freeze_mlps: FreezeMLPs = gated


_PRE_NORM = Structure()
_PRE_NORM_FUSED = Structure(freeze_mlps=fused)
_NORM_AFTER = Structure(attention=Branch("post_attention_layernorm"), mlp=Branch("post_feedforward_layernorm"))

STRUCTURES: dict[str, Structure] = {
    "LlamaForCausalLM": _PRE_NORM,
    "MistralForCausalLM": _PRE_NORM,
    "MinistralForCausalLM": _PRE_NORM,
    "Ministral3ForCausalLM": _PRE_NORM,
    "Qwen2ForCausalLM": _PRE_NORM,
    "Qwen3ForCausalLM": _PRE_NORM,
    "SmolLM3ForCausalLM": _PRE_NORM,
    "SeedOssForCausalLM": _PRE_NORM,
    "GemmaForCausalLM": _PRE_NORM,
    "CohereForCausalLM": _PRE_NORM,
    "Cohere2ForCausalLM": _PRE_NORM,
    "Phi3ForCausalLM": _PRE_NORM_FUSED,
    "GlmForCausalLM": _PRE_NORM_FUSED,
    "Gemma2ForCausalLM": _NORM_AFTER,
    "Gemma3ForCausalLM": _NORM_AFTER,
    "Gemma3ForConditionalGeneration": replace(_NORM_AFTER, decoder="model.language_model"),
    "Olmo2ForCausalLM": _NORM_AFTER,
    "Olmo3ForCausalLM": _NORM_AFTER,
    "Glm4ForCausalLM": replace(
        _PRE_NORM_FUSED, attention=Branch("post_self_attn_layernorm"), mlp=Branch("post_mlp_layernorm")
    ),
    "GraniteForCausalLM": Structure(
        attention=Branch("self_attn", "residual_multiplier"), mlp=Branch("mlp", "residual_multiplier")
    ),
    "Starcoder2ForCausalLM": Structure(freeze_mlps=activations("mlp.act")),
    "PhiForCausalLM": Structure(freeze_mlps=activations("mlp.activation_fn")),
    "GPT2LMHeadModel": Structure(
        decoder="transformer", blocks="h", attention=Branch("attn"), freeze_mlps=activations("mlp.act")
    ),
    "GPTNeoXForCausalLM": Structure(
        decoder="gpt_neox", attention=Branch("attention"), freeze_mlps=activations("mlp.act")
    ),
    "OPTForCausalLM": Structure(decoder="model.decoder", mlp=Branch("fc2"), freeze_mlps=activations("activation_fn")),
}


def structure_of(model: Any) -> Structure:
    kind = type(model).__name__
    assert kind in STRUCTURES, f"put {kind} into STRUCTURES here or, if it has experts, in tests/oracles_moe.py"
    return STRUCTURES[kind]


def decoder_of(model: Any) -> Any:
    """Return the module whose last_hidden_state the head reads."""
    return model.get_submodule(structure_of(model).decoder)


def blocks_of(model: Any) -> Any:
    return decoder_of(model).get_submodule(structure_of(model).blocks)


def gated_product(act: Callable[[Tensor], Tensor], freeze: str, freezer: Freezer, z: Tensor, u: Tensor) -> Tensor:
    """act(z) ∘ u with one factor frozen: act(z), or u and act(z)/z, or the mean of both."""
    by_gate, by_up = freezer(act(z)) * u, frozen_activation(act, freezer, z) * freezer(u)
    return {"gate": by_gate, "up": by_up, "half": 0.5 * by_gate + 0.5 * by_up}[freeze]


def frozen_activation(act: Callable[[Tensor], Tensor], freezer: Freezer, z: Tensor) -> Tensor:
    """act(z) = (act(z)/z) z with the ratio frozen; where z = 0 it is the slope that autograd gives act there."""
    with torch.enable_grad():
        zero = torch.zeros((), dtype=z.dtype, requires_grad=True)
        (slope,) = torch.autograd.grad(act(zero), zero)
    nonzero = torch.where(z == 0, 1.0, z)
    return freezer(torch.where(z == 0, slope, act(nonzero) / nonzero)) * z


@contextmanager
def replaced_forwards(modules: Iterable[Any], forward_of: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Let each module run another forward for a while; hooks on it still fire."""
    modules = list(modules)
    for module in modules:
        module.forward = forward_of(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward

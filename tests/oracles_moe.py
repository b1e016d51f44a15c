"""Routed experts frozen for the oracles: what a router gives is constant, and so is one factor inside each expert.

Every row meets the matrices of the expert it chose, gathered from the 3-D weights: the modules' own dispatch, which
sorts rows by expert, has no part in it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.oracle_structures import (
    STRUCTURES,
    Branch,
    FreezeMLPs,
    Freezer,
    Structure,
    blocks_of,
    frozen_activation,
    gated_product,
    replaced_forwards,
)

ExpertsForward = Callable[..., Tensor]


def routed(path: str, router: str, forward_of_experts: Callable[..., ExpertsForward], *beside: str) -> FreezeMLPs:
    """Blocks whose MLP, at ``path``, is dense or has a router, experts and gated MLPs ``beside`` them."""

    @contextmanager
    def freeze_mlps(model: Any, freeze: str, freezer: Freezer) -> Iterator[None]:
        mlps = [block.get_submodule(path) for block in blocks_of(model)]
        sparse = [mlp for mlp in mlps if hasattr(mlp, "experts")]
        gated = [mlp for mlp in mlps if mlp not in sparse]
        gated += [mlp.get_submodule(name) for mlp in sparse for name in beside]
        with (
            replaced_forwards(gated, lambda mlp: partial(gated_mlp, mlp, freeze, freezer)),
            replaced_forwards([mlp.get_submodule(router) for mlp in sparse], lambda it: constant(it.forward, freezer)),
            replaced_forwards([mlp.experts for mlp in sparse], lambda it: forward_of_experts(it, freeze, freezer)),
        ):
            yield

    return freeze_mlps


def constant(forward: Callable[..., tuple[Tensor, ...]], freezer: Freezer) -> Callable[..., tuple[Tensor, ...]]:
    """Scores and choices of a router through the freezer."""
    return lambda *args: tuple(freezer(out) for out in forward(*args))


def gated_mlp(mlp: Any, freeze: str, freezer: Freezer, x: Tensor) -> Tensor:
    act = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
    return mlp.down_proj(gated_product(act, freeze, freezer, mlp.gate_proj(x), mlp.up_proj(x)))


def gate_rows_first(experts: Any, freeze: str, freezer: Freezer) -> ExpertsForward:
    """Weights [E, out, in], the gate's rows before the up rows."""

    def expert(x: Tensor, e: Tensor) -> Tensor:
        z, u = torch.einsum("noi, ni -> no", experts.gate_up_proj[e], x).tensor_split(2, dim=-1)
        return torch.einsum("noi, ni -> no", experts.down_proj[e], gated_product(experts.act_fn, freeze, freezer, z, u))

    return partial(weighted_outputs, expert)


def gate_and_up_in_turn(experts: Any, freeze: str, freezer: Freezer) -> ExpertsForward:
    """Weights [E, in, out] with biases, even columns the gate's; a product of clamped factors (gpt-oss)."""

    def expert(x: Tensor, e: Tensor) -> Tensor:
        z_u = torch.einsum("nio, ni -> no", experts.gate_up_proj[e], x) + experts.gate_up_proj_bias[e]
        product = clamped_product(experts.limit, experts.alpha, freeze, freezer, z_u[:, 0::2], z_u[:, 1::2])
        return torch.einsum("nio, ni -> no", experts.down_proj[e], product) + experts.down_proj_bias[e]

    return partial(weighted_outputs, expert)


def weighted_inputs(experts: Any, freeze: str, freezer: Freezer) -> ExpertsForward:
    """Weights [E, in, out], the gate's columns before the up columns; rows come scaled by their scores (Llama 4).

    All rows for the first expert come first, then all for the second: those that chose another one are zero.
    """

    def forward(scaled: Tensor) -> Tensor:
        outputs = []
        for e, x in enumerate(scaled.tensor_split(len(experts.gate_up_proj))):
            z, u = (x @ experts.gate_up_proj[e]).tensor_split(2, dim=-1)
            outputs.append(gated_product(experts.act_fn, freeze, freezer, z, u) @ experts.down_proj[e])
        return torch.cat(outputs)

    return forward


def weighted_outputs(expert: Callable[[Tensor, Tensor], Tensor], x: Tensor, choices: Tensor, scores: Tensor) -> Tensor:
    """Σ_k score_tk · expert_{e_tk}(x_t) over the choices k of a row t."""
    out = torch.zeros_like(x)
    for e, score in zip(choices.T, scores.T, strict=True):
        out = out + (score[:, None] * expert(x, e)).to(x.dtype)
    return out


def clamped_product(limit: float, alpha: float, freeze: str, freezer: Freezer, z: Tensor, u: Tensor) -> Tensor:
    """glu(z) ∘ (clamp(u) + 1) with one factor frozen, glu(z) = c σ(αc), c = min(z, limit), |clamp(u)| ≤ limit.

    Frozen glu: clamp(u) is u where it does not saturate, a constant where it does. Frozen clamp(u) + 1:
    glu(z) = (glu(z)/z) z with the ratio frozen.
    """

    def glu(z: Tensor) -> Tensor:
        c = torch.clamp(z, max=limit)
        return c * torch.sigmoid(alpha * c)

    free = freezer((u.abs() <= limit).to(u.dtype))
    saturated = freezer(limit * torch.sign(u)) * (1 - free)
    by_gate = freezer(glu(z)) * (free * u + saturated + 1)
    by_up = frozen_activation(glu, freezer, z) * freezer(torch.clamp(u, -limit, limit) + 1)
    return {"gate": by_gate, "up": by_up, "half": 0.5 * by_gate + 0.5 * by_up}[freeze]


_RESIDUAL = "residual_multiplier"

STRUCTURES.update(
    {
        "Qwen3MoeForCausalLM": Structure(freeze_mlps=routed("mlp", "gate", gate_rows_first)),
        "MixtralForCausalLM": Structure(freeze_mlps=routed("mlp", "gate", gate_rows_first)),
        "OlmoeForCausalLM": Structure(freeze_mlps=routed("mlp", "gate", gate_rows_first)),
        "GraniteMoeForCausalLM": Structure(
            attention=Branch("self_attn", _RESIDUAL),
            mlp=Branch("block_sparse_moe", _RESIDUAL),
            freeze_mlps=routed("block_sparse_moe", "router", gate_rows_first),
        ),
        "GptOssForCausalLM": Structure(freeze_mlps=routed("mlp", "router", gate_and_up_in_turn)),
        "DeepseekV3ForCausalLM": Structure(freeze_mlps=routed("mlp", "gate", gate_rows_first, "shared_experts")),
        "Glm4MoeForCausalLM": Structure(freeze_mlps=routed("mlp", "gate", gate_rows_first, "shared_experts")),
        "Llama4ForCausalLM": Structure(
            mlp=Branch("feed_forward"),
            freeze_mlps=routed("feed_forward", "router", weighted_inputs, "shared_expert"),
        ),
    }
)

"""The ordinary Jacobian times the input, by plain forward-mode differentiation: what detaching is compared with."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.network import FrozenNetwork
from detjac_lanczos.frozen.places import Place, source_block, target_place
from detjac_lanczos.frozen.precision import LiftToFloat64
from detjac_lanczos.frozen.structural_copy import observed_copy

_ROWS_PER_PASS = 256


def ordinary_estimate(
    network: FrozenNetwork,
    *,
    prompt: int = 0,
    source: str | Place = "embeddings",
    target: str | Place = "output",
    position: int = -1,
) -> Tensor:
    """Return Σ_i J_i x_i with the ordinary Jacobians J_i of the model, nothing frozen: (d_out,).

    The nonlinear model is no sum of its ordinary Jacobians: this misses y where `reconstruction` meets it. One jvp with
    the input as its own tangent. Parameters and errors as in `ordinary_products`.
    """
    inputs = _inputs(network, prompt, source, position)
    return _jvp(network, inputs, inputs[None], source, target, position)[0]


def ordinary_products(
    network: FrozenNetwork,
    *,
    prompt: int = 0,
    source: str | Place = "embeddings",
    target: str | Place = "output",
    position: int = -1,
) -> Tensor:
    """Return J_i x_i of every token up to the position, with the ordinary Jacobians of the model.

    Parameters
    ----------
    network : FrozenNetwork
        Its model is differentiated on a structural copy, unfrozen; the caller's model is not touched.
    prompt : int
    source : "embeddings" or layer(l)
    target : "output", "residual" or layer(l)
    position : int

    Returns
    -------
    Tensor, shape (tokens, d_out)

    Raises
    ------
    InputError
        If the source, target, prompt or position does not exist, or the target is none of these.
    """
    inputs = _inputs(network, prompt, source, position)
    tokens = position % len(inputs) + 1
    products = []
    for chosen in torch.arange(tokens).split(max(1, _ROWS_PER_PASS // len(inputs))):
        tangents = inputs.new_zeros(len(chosen), *inputs.shape)
        tangents[torch.arange(len(chosen)), chosen] = inputs[chosen]
        products.append(_jvp(network, inputs, tangents, source, target, position))
    return torch.cat(products)


def _inputs(network: FrozenNetwork, prompt: int, source: str | Place, position: int) -> Tensor:
    if not 0 <= prompt < len(network.prompts):
        raise InputError(f"prompt {prompt} does not exist; there are {len(network.prompts)}")
    inputs = network.inputs(source_block(source, network.blocks), prompt)
    if not -len(inputs) <= position < len(inputs):
        raise InputError(f"position {position} does not exist; the prompt has {len(inputs)} tokens")
    return inputs


def _jvp(
    network: FrozenNetwork, inputs: Tensor, tangents: Tensor, source: str | Place, target: str | Place, position: int
) -> Tensor:
    """Differentiate at inputs (n, d) along tangents (b, n, d), one copy of the prompt each: (b, d_out)."""
    block = max(source_block(source, network.blocks), 0)
    place = target_place(target, network.blocks)
    if place.kind not in ("output", "residual", "layer"):
        raise InputError(f"an ordinary product ends at 'output', 'residual' or layer(l), not {place}")
    point = inputs.expand_as(tangents).contiguous()
    mask = torch.ones(tangents.shape[:2], dtype=torch.long, device=network.device)
    twin = observed_copy(network.model)
    decoder, blocks = network.family.decoder_of(twin), network.family.blocks_of(twin)
    final_norm = decoder.get_submodule("norm")
    state: dict[str, Tensor] = {}

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (state["x"], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": state["x"]}

    def leave(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        state["y"] = (out if isinstance(out, Tensor) else out[0])[:, position]

    def leave_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state["y"] = (args[0] if args else kwargs["hidden_states"])[:, position]

    blocks[block].register_forward_pre_hook(enter, with_kwargs=True)
    if place.kind == "residual":
        final_norm.register_forward_pre_hook(leave_input, with_kwargs=True)
    else:
        end = final_norm if place.index is None else blocks[place.index]
        end.register_forward_hook(leave)

    def run(x: Tensor) -> Tensor:
        state["x"] = x
        decoder(inputs_embeds=x, attention_mask=mask, use_cache=False)
        return state["y"]

    with torch.no_grad(), LiftToFloat64() if network.dtype is torch.float64 else nullcontext():
        product: Tensor = torch.func.jvp(run, (point,), (tangents.to(point),))[1]
    state.clear()
    return product

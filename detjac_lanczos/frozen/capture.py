"""One ordinary forward pass, observed on a structural copy: everything that will be frozen, and the streams."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detjac_lanczos.errors import ModelError
from detjac_lanczos.frozen.declare import Family, Freeze
from detjac_lanczos.frozen.precision import LiftToFloat64, in_own_precision
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.structural_copy import observed_copy, structural_copy, use_observed_attention


@dataclass(frozen=True)
class Streams:
    """Values of the nonlinear forward pass, all prompts one after another over N positions.

    ``residual``: (N, d) entering each block, and one more after the last; ``output``: (N, d) after the final norm;
    ``logits``: (prompts, vocabulary) at the last position of each prompt. ``model_output`` is `output` as the caller's
    own model computes it, with its own attention and roundings.
    """

    residual: tuple[Tensor, ...]
    output: Tensor
    logits: Tensor
    model_output: Tensor


@in_own_precision
def capture(
    model: nn.Module, family: Family, prompts: Sequence[Prompt], freeze: Freeze
) -> tuple[dict[str, Tensor], Streams]:
    """Run every prompt once, unpadded, and record the frozen factors.

    Parameters
    ----------
    model : transformers model; never written to
    family : Family
    prompts : sequence of Prompt
    freeze : {"gate", "up", "half"}

    Returns
    -------
    coefficients : dict of str to Tensor
        "blocks.3.input_layernorm.rstd": (N,), "blocks.3.mlp.gate_proj.activation": (N, f) and so on over all N
        positions; "blocks.3.self_attn.mixing.0": (heads, n, n), one per prompt. float32 at least.
    streams : Streams
    """
    twin = structural_copy(model)
    tape: dict[str, list[Tensor]] = {}
    decoder = twin.get_submodule(family.decoder)
    final_norm = decoder.get_submodule(family.final_norm.path)
    plain = _on_output(final_norm, tape, "model_output")
    for prompt in prompts:
        _run(twin, prompt)
    plain.remove()
    use_observed_attention(twin)

    def record(name: str, value: Tensor) -> None:
        tape.setdefault(name, []).append(value[0].to(torch.promote_types(value.dtype, torch.float32)))

    blocks = decoder.get_submodule(family.blocks)
    for index, block in enumerate(blocks):
        _on_input(block, tape, f"residual.{index}")
        for branch in _branches(family):
            for word in branch.words:
                word.observe(block, f"blocks.{index}.", record, freeze)
    family.final_norm.observe(decoder, "final.", record, freeze)
    _on_input(final_norm, tape, f"residual.{len(blocks)}")
    _on_output(final_norm, tape, "output")
    logits = _run_all(twin, prompts)
    return _sorted(tape, len(blocks), logits)


@in_own_precision
def branch_values(model: nn.Module, family: Family, prompts: Sequence[Prompt], role: str, index: int) -> Tensor:
    """Run every prompt again and return one branch before its residual add: (N, d).

    The branches of all blocks would be the largest streams; one more pass, when one of them is asked for, is cheaper.
    """
    twin = observed_copy(model)
    tape: dict[str, list[Tensor]] = {}
    block = twin.get_submodule(family.decoder).get_submodule(family.blocks)[index]
    output = next(branch.output for branch in _branches(family) if branch.role == role)
    _on_output(block.get_submodule(output), tape, role)
    _run_all(twin, prompts)
    return _joined(tape[role])


def _sorted(tape: dict[str, list[Tensor]], blocks: int, logits: Tensor) -> tuple[dict[str, Tensor], Streams]:
    streams = Streams(
        residual=tuple(_joined(tape.pop(f"residual.{i}")) for i in range(blocks + 1)),
        output=_joined(tape.pop("output")),
        logits=logits,
        model_output=_joined(tape.pop("model_output")),
    )
    if not torch.isfinite(streams.output).all():
        raise ModelError("the model's output is not finite on this prompt; check its weights and dtype (try float32)")
    coefficients: dict[str, Tensor] = {}
    for name, values in tape.items():
        if name.endswith(".mixing"):
            coefficients.update({f"{name}.{i}": value for i, value in enumerate(values)})
        else:
            coefficients[name] = _joined(values)
    return coefficients, streams


def _run_all(twin: Any, prompts: Sequence[Prompt]) -> Tensor:
    """Run every prompt in the model's working precision; return the last logits, (prompts, vocabulary)."""
    dtype = next(twin.parameters()).dtype
    with LiftToFloat64() if dtype is torch.float64 else nullcontext():
        return torch.cat([_run(twin, prompt) for prompt in prompts])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _branches(family: Family) -> list[Any]:
    return [branch for stage in family.block for branch in stage]


def _on_input(module: nn.Module, tape: dict[str, list[Tensor]], name: str) -> None:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        tape.setdefault(name, []).append(x[0].clone())

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(module: nn.Module, tape: dict[str, list[Tensor]], name: str) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        tape.setdefault(name, []).append(y[0].clone())

    return module.register_forward_hook(hook)


def _run(model: Any, prompt: Prompt) -> Tensor:
    """Run one prompt alone; return the logits of its last position, (1, vocabulary)."""
    parameter = next(model.parameters())
    device = parameter.device
    inputs: dict[str, Tensor]
    if prompt.embeds is None:
        inputs = {"input_ids": torch.tensor([prompt.ids], device=device)}
    else:
        inputs = {"inputs_embeds": prompt.embeds[None].to(device, parameter.dtype)}
    mask = torch.ones(1, prompt.length, dtype=torch.long, device=device)
    logits: Tensor = model(**inputs, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits

"""The stages between two places of a network, and the maps that read its output as logits or through a probe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detjac_lanczos.frozen.maps import Linear, Map, apply_from_afar, device_of
from detjac_lanczos.frozen.places import Place, check_reach
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.sweep import Program
from detjac_lanczos.frozen.widths import width_after
from detjac_lanczos.frozen.words import Softcap, as_written
from detjac_lanczos.models.weights import DenseWeight

if TYPE_CHECKING:
    from detjac_lanczos.frozen.network import FrozenNetwork


def program_of(network: FrozenNetwork, source: int, target: Place) -> Program:
    """Return the stages from a source to a target; see `FrozenNetwork.program`."""
    blocks = network.blocks
    check_reach(source, target, network.output_size)
    last = blocks - 1 if target.kind == "residual" else blocks if target.index is None else target.index
    stages = [stage for stage in network.stages if source <= stage.block <= last]
    width = network.output_size if last == blocks else network.hidden_size
    if target.kind in ("attention", "mlp"):
        name = f"{network.family.branch(target.kind).role}.{target.index}"
        end = next(i for i, stage in enumerate(stages) if any(b.name == name for b in stage.branches))
        only = tuple(b for b in stages[end].branches if b.name == name)
        stages = [*stages[:end], replace(stages[end], branches=only, residual=False)]
    elif target.kind in ("logits", "probe"):
        reading = reading_of(network, target, network.streams.output)
        stages.append(Stage((Branch(target.kind, reading),), residual=False))
        width = next(step.weight.shape[0] for step in reading if isinstance(step, Linear))
    stream = network.streams.embeddings if source < 0 else network.streams.residual[source]
    return Program(tuple(stages), stream.shape[1], width, blocks)


def reading_of(network: FrozenNetwork, target: Place, output: Tensor) -> tuple[Map, ...]:
    """Return the maps from the output to logits or a probe, frozen at rows of outputs (n, d)."""
    if target.rows is not None:
        return (Linear(DenseWeight(target.rows.to(network.device, network.dtype))),)
    model = network.family.causal_model_of(network.model)
    where, width, end = "the way to the logits", network.output_size, network.streams.logits.shape[1]
    reading: list[Map] = []
    for word in network.family.logits:
        seen = {}
        if isinstance(word, Softcap):
            logits = apply_from_afar(reading, output, torch.arange(len(output)))
            seen["softcap"] = logits.to(device_of(reading) or network.device)
        with network.family.fits(where, as_written(word)):
            steps = word.maps(model, "", seen, network.freeze)
            width = width_after(steps, width)
        reading += steps
    with network.family.fits(where):
        if width != end:
            raise ValueError(f"it gives rows {width} wide, and there are {end} logits")
    return tuple(reading)

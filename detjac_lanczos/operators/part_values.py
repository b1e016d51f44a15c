"""Every part of a declared network against the model's own part, at every position of the first prompt.

The output at the last position would hide a part that no window lets through, a large residual stream a small branch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detjac_lanczos.frozen.capture import watch_branches
from detjac_lanczos.frozen.layout import Layout, Segment
from detjac_lanczos.frozen.sweep import Program, unpruned
from detjac_lanczos.operators.bars import part_values_bar, require
from detjac_lanczos.operators.network import DetachedNetwork


def require_part_values(network: DetachedNetwork) -> None:
    """Check the entry, every block and each of its branches, and the tail, each on what enters it in the model.

    Raises
    ------
    UnsupportedModelError
        Naming the first part that gives something else.
    """
    length = network.lengths[0]
    layout = Layout([Segment(0, 0, length - 1, 1, joint=True)], network.lengths, network.device)
    residual = [stream[:length] for stream in network.streams.residual]

    def compare(block: int, before: Tensor, after: Tensor, branches: dict[str, Tensor]) -> None:
        stages = tuple(stage for stage in network.stages if stage.block == block)
        program = Program(stages, before.shape[1], after.shape[1], network.blocks)
        found: dict[str, Tensor] = {}
        value = unpruned(program, before, layout, found.__setitem__)
        for role, rows in branches.items():
            name = f"{role}.{block}"
            _require(network, name, found[name], rows, before)
        _require(network, f"block {block}", value, after, before)

    compare(-1, network.streams.embeddings[:length], residual[0], {})
    watch_branches(
        network.model,
        network.family,
        network.prompts[:1],
        lambda block, branches: compare(block, residual[block], residual[block + 1], branches),
    )
    compare(network.blocks, residual[-1], network.streams.output[:length], {})


def _require(network: DetachedNetwork, name: str, found: Tensor, observed: Tensor, stream: Tensor) -> None:
    """Compare a part's values, but for one rounding of the stream that enters: a large mean may cancel in its norm."""
    observed = observed.to(found)
    difference = float((found - observed).double().norm())
    rounding = torch.finfo(stream.dtype).eps * float(stream.double().norm())
    size = float(found.double().norm()) + float(observed.double().norm())
    error = max(difference - rounding, 0.0) / (size or 1.0)
    require(network, [(f"{name} gives something else than the model's", error, part_values_bar(network.dtype))])

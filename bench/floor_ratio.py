"""A sweep against its floor, both directions."""

from dataclasses import replace
from typing import Any

import torch

import detjac_lanczos as dl
from bench.floor import Floor
from bench.measure import CLOCKS, in_turns, middle
from detjac_lanczos.frozen.layout import Layout
from detjac_lanczos.frozen.places import target_place


def ratios(
    model: Any, ids: list[int], widths: tuple[int, ...], repeats: int = 31, clock: str = "wall"
) -> list[dict[str, float]]:
    """Return, per width of the blocks of all tokens in lockstep, milliseconds of the sweep and of its floor."""
    network = dl.detach((model, None), input_ids=ids)
    batch = network.jacobians()
    program = network.program(-1, target_place("output", network.blocks))
    table = []
    for width in widths:
        segments = [replace(operator.segment, width=width) for operator in batch.operators]
        layout = Layout(segments, network.lengths, network.device)
        inputs = [(i, torch.randn(program.d_in, width)) for i in range(len(batch))]
        cotangents = [(i, torch.randn(program.d_out, width)) for i in range(len(batch))]
        calls = {
            "forward": lambda inputs=inputs: batch.matmat(inputs),
            "forward floor": Floor(program, layout, transposed=False),
            "transposed": lambda cotangents=cotangents: batch.rmatmat(cotangents),
            "transposed floor": Floor(program, layout, transposed=True),
        }
        in_turns(calls, dict.fromkeys(calls, 2))
        seconds = in_turns(calls, dict.fromkeys(calls, repeats), CLOCKS[clock])
        times = {name: 1e3 * middle(s) for name, s in seconds.items()}
        table.append(
            {
                "rows": layout.rows,
                **times,
                "forward_ratio": _paired(seconds["forward"], seconds["forward floor"]),
                "transposed_ratio": _paired(seconds["transposed"], seconds["transposed floor"]),
            }
        )
    return table


def _paired(seconds: list[float], floor: list[float]) -> float:
    """Return the median of the ratios turn by turn: a machine that drifts meets both alike."""
    return middle([a / b for a, b in zip(seconds, floor, strict=True)])

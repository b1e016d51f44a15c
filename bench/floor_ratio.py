"""A sweep against its floor, both directions."""

from typing import Any

import torch

import detjac_lanczos as dl
from bench.floor import gemms
from bench.measure import in_turns, middle


def ratios(model: Any, ids: list[int], widths: tuple[int, ...], repeats: int = 31) -> list[dict[str, float]]:
    """Return, per width of the blocks of all tokens in lockstep, milliseconds of the sweep and of its floor."""
    batch = dl.detach((model, None), input_ids=ids).jacobians()
    d, n = model.config.hidden_size, len(ids)
    table = []
    for width in widths:
        rows = width * n * (n + 1) // 2
        blocks = [(i, torch.randn(d, width)) for i in range(n)]
        roads = {
            "forward": lambda blocks=blocks: batch.matmat(blocks),
            "forward floor": lambda rows=rows: gemms(model, rows, n, transposed=False),
            "transposed": lambda blocks=blocks: batch.rmatmat(blocks),
            "transposed floor": lambda rows=rows: gemms(model, rows, n, transposed=True),
        }
        in_turns(roads, dict.fromkeys(roads, 2))
        seconds = in_turns(roads, dict.fromkeys(roads, repeats))
        times = {name: 1e3 * middle(s) for name, s in seconds.items()}
        table.append(
            {
                "rows": rows,
                **times,
                "forward_ratio": _paired(seconds["forward"], seconds["forward floor"]),
                "transposed_ratio": _paired(seconds["transposed"], seconds["transposed floor"]),
            }
        )
    return table


def _paired(seconds: list[float], floor: list[float]) -> float:
    """Return the median of the ratios turn by turn: a machine that drifts meets both alike."""
    return middle([a / b for a, b in zip(seconds, floor, strict=True)])

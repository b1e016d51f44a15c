"""The chart of a survey: σ_1 of token after token, each with the interval that holds it."""

from __future__ import annotations

from collections.abc import Sequence

from detjac_lanczos.reading.page.charts import Axis, axes, beside, log_range, svg
from detjac_lanczos.reading.page.markup import dotted, text
from detjac_lanczos.reading.record_values import significant

_SMALLEST, _LARGEST = 1.1, 4.0
_PIXELS_A_TICK = 46


def intervals(marks: Sequence[tuple[str, str, float, tuple[float, float]]], summary: str, width: float) -> str:
    """Return values with their intervals, in the order of the tokens, on a log scale.

    Parameters
    ----------
    marks : sequence of (kind, name, value, (low, high))
        ``kind`` is "estimate" (drawn as a dot), "flagged" (a diamond) or "polished" (a square), and the CSS class.
    summary : str
        What a reader who cannot see the chart is told.
    width : float
        In pixels; letters keep their size.
    """
    height = 360.0
    y = Axis(*log_range([end for _, _, _, ends in marks for end in ends]), height - 44, 14, log=True)
    x = Axis(-0.5, len(marks) - 0.5, beside(y), width - 12)
    few = max(2, int((x.end - x.start) / _PIXELS_A_TICK))
    columns = [tick for tick in x.ticks(few) if tick == int(tick)]
    parts = axes(x, y, columns, "token", "largest singular value σ₁")
    size = min(_LARGEST, max(_SMALLEST, 0.3 * (x.end - x.start) / len(marks)))
    for kind in ("estimate", "flagged", "polished"):
        drawn = []
        for order, (own, name, value, (low, high)) in enumerate(marks):
            if own != kind:
                continue
            at, middle = x(order), y(value)
            told = f"{dotted(name)}: σ₁ {'=' if low == high else '≈'} {significant(value)}"
            told += "" if low == high else f", from {significant(low)} to {significant(high)}"
            drawn.append(
                f"<g><title>{text(told)}</title>"
                f'<path class="bar" d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"/>{_shape(kind, at, middle, size)}</g>'
            )
        if drawn:
            parts.append(f'<g class="interval {kind}" style="--w:{max(1.0, 0.7 * size):.1f}px">{"".join(drawn)}</g>')
    return svg(parts, width, height, summary)


def _shape(kind: str, x: float, y: float, size: float) -> str:
    if kind == "estimate":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    if kind == "flagged":
        s = 1.3 * size
        return f'<path d="M{x:.1f} {y - s:.1f}l{s:.1f} {s:.1f}l{-s:.1f} {s:.1f}l{-s:.1f} {-s:.1f}z"/>'
    return f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" height="{2 * size:.1f}"/>'

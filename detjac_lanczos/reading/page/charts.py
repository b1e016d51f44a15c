"""Charts as inline SVG: colours and letters come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from detjac_lanczos.reading.page.markup import text
from detjac_lanczos.reading.record_values import significant
from detjac_lanczos.reading.visible import fit

_POINTS = 2000
_LABEL = 13
_PIXELS_A_TICK = 26
_DIGIT = 7


@dataclass(frozen=True)
class Axis:
    """One axis: data ``low``..``high`` (log10 where ``log``) to pixels ``start``..``end``.

    What lies under a log axis is drawn at its start.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        at = max(math.log10(max(value, 1e-300)), self.low) if self.log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 7) -> list[float]:
        """Return round values inside the axis."""
        if self.log:
            steps = (1, 2, 5) if self.high - self.low < 3 else (1,)
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            every = max(1, len(decades) // 6)
            found = [m * 10.0**d for d in decades if d % every == 0 for m in steps]
            inside = [v for v in found if self.low - 1e-9 <= math.log10(v) <= self.high + 1e-9]
            return inside if len(inside) > 1 else Axis(10**self.low, 10**self.high, self.start, self.end).ticks(count)
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range of log10 with some air, of the values above zero and no more than 12 decades."""
    logs = [math.log10(value) for value in values if value > 0] or [0.0]
    high = max(logs)
    low = max(min(logs), high - 12)
    air = 0.06 * max(high - low, 0.3)
    return low - air, high + air


def spectra(lines: Sequence[tuple[str, Sequence[float]]], summary: str, width: float = 760.0) -> str:
    """Return the spectra of all tokens, one line each from dark (first token) to light (last).

    Parameters
    ----------
    lines : sequence of (name, singular values)
    summary : str
        What a reader who cannot see the chart is told.
    width : float
        In pixels; letters keep their size.
    """
    height = 340.0
    longest = max(len(values) for _, values in lines)
    y = Axis(*log_range([v for _, values in lines for v in values]), height - 40, 14, log=True)
    x = Axis(1, max(2, longest), beside(y), width - 100)
    few = int((x.end - x.start) / _PIXELS_A_TICK)
    columns = [float(j) for j in range(1, longest + 1)] if longest <= few else x.ticks(few)
    parts = axes(x, y, columns, "index j", "singular value σⱼ")
    labels = _apart([(y(values[-1]), name) for name, values in lines if values], 15, y.end, y.start)
    for order, (name, values) in enumerate(lines):
        if not values:
            continue
        shade = f"--t:{100 * order / max(1, len(lines) - 1):.0f}%"
        path = " ".join(f"{'L' if j else 'M'}{x(j + 1):.1f} {y(v):.1f}" for j, v in enumerate(values))
        dots = "".join(f'<circle cx="{x(j + 1):.1f}" cy="{y(v):.1f}" r="3"/>' for j, v in enumerate(values))
        parts.append(f'<g class="series" style="{shade}"><title>{text(name)}</title><path d="{path}"/>{dots}')
        if labels and len(lines) <= 16:
            label = text(fit(name, _LABEL).rstrip())
            parts.append(f'<text x="{x(len(values)) + 9:.1f}" y="{labels[name] + 4:.1f}">{label}</text>')
        parts.append("</g>")
    return svg(parts, width, height, summary)


def spectrum(values: Sequence[float], span: tuple[float, float], summary: str) -> str:
    """Return one token's spectrum as stems on the log scale ``span`` that all tokens of the page share."""
    width, height = 330.0, 190.0
    x = Axis(0.5, len(values) + 0.5, 40, width - 8)
    y = Axis(*span, height - 28, 20, log=True)
    parts = axes(x, y, [float(j) for j in range(1, len(values) + 1)] if len(values) <= 12 else x.ticks(), "", "")
    for j, value in enumerate(values, 1):
        at, top = x(j), y(value)
        parts.append(
            f'<g class="stem"><title>σ{j} = {significant(value)}</title>'
            f'<path d="M{at:.1f} {y.start:.1f}V{top:.1f}"/><circle cx="{at:.1f}" cy="{top:.1f}" r="4.5"/>'
        )
        if len(values) <= 10:
            parts.append(f'<text x="{at:.1f}" y="{top - 9:.1f}" class="mid">{significant(value, 3)}</text>')
        parts.append("</g>")
    return svg(parts, width, height, summary)


def scatter(
    truth: Sequence[float],
    clouds: Sequence[tuple[str, Sequence[float]]],
    names: tuple[str, str],
    summary: str,
    width: float = 552.0,
) -> str:
    """Return estimates against the truth, with the diagonal.

    Parameters
    ----------
    truth : sequence of float
    clouds : sequence of (CSS class, estimates)
        Drawn in this order; class "cross" is drawn with crosses, others with dots.
    names : tuple of str
        Of the axes: the truth and the estimates.
    summary : str
    width : float
        In pixels; letters keep their size.
    """
    height = max(330.0, 0.75 * width)
    kept = _thinned(truth)
    everything = [truth[i] for i in kept] + [cloud[i] for _, cloud in clouds for i in kept]
    low, high = min(everything), max(everything)
    # Nearly equal values keep a range in which their ticks differ in the digits shown.
    air = max(0.04 * (high - low), 0.01 * max(-low, high)) or 1.0
    y = Axis(low - air, high + air, height - 44, 10)
    x = Axis(low - air, high + air, beside(y), width - 10)
    columns = _side_by_side(x, width)
    parts = [f'<path class="grid" d="M{x(value):.1f} {y.start:.1f}V{y.end:.1f}"/>' for value in columns]
    parts += axes(x, y, columns, *names)
    parts.append(f'<path class="diagonal" d="M{x.start} {y.start}L{x.end} {y.end}"/>')
    for kind, cloud in clouds:
        marks = []
        for i in kept:
            px, py = x(truth[i]), y(cloud[i])
            cross = f"M{px - 2.5:.1f} {py - 2.5:.1f}l5 5m0-5l-5 5"
            marks.append(cross if kind == "cross" else f"M{px:.1f} {py:.1f}h0")
        parts.append(f'<path class="cloud {kind}" d="{"".join(marks)}"/>')
    return svg(parts, width, height, summary)


def _side_by_side(x: Axis, width: float) -> list[float]:
    """Return ticks of a horizontal axis whose labels neither touch nor leave a drawing of this width."""
    for count in range(7, 1, -1):
        inside = [value for value in x.ticks(count) if x(value) + _DIGIT * len(_tick(value)) / 2 <= width]
        if len(inside) < 2 or _DIGIT * (_longest(inside) + 1) <= x(inside[1]) - x(inside[0]):
            break
    return inside


def _longest(ticks: Sequence[float]) -> int:
    return max(len(_tick(value)) for value in ticks)


def _thinned(truth: Sequence[float]) -> list[int]:
    """Return indices of at most so many points, evenly over the sorted values, both ends kept."""
    order = sorted(range(len(truth)), key=truth.__getitem__)
    if len(order) <= _POINTS:
        return order
    return [order[round(i * (len(order) - 1) / (_POINTS - 1))] for i in range(_POINTS)]


def axes(x: Axis, y: Axis, columns: Sequence[float], below: str, left: str) -> list[str]:
    """Return both axes with their grid, ticks and names; ``columns`` are the ticks of ``x``."""
    parts = []
    for value in y.ticks():
        parts.append(f'<path class="grid" d="M{x.start:.1f} {y(value):.1f}H{x.end:.1f}"/>')
        parts.append(f'<text class="end" x="{x.start - 8:.1f}" y="{y(value) + 4:.1f}">{_tick(value)}</text>')
    for value in columns:
        parts.append(f'<text class="mid" x="{x(value):.1f}" y="{y.start + 17:.1f}">{_tick(value)}</text>')
    parts.append(f'<path class="axis" d="M{x.start:.1f} {y.start:.1f}H{x.end:.1f}"/>')
    middle = (x.start + x.end) / 2, (y.start + y.end) / 2
    if below:
        parts.append(f'<text class="mid name" x="{middle[0]:.1f}" y="{y.start + 35:.1f}">{text(below)}</text>')
    if left:
        parts.append(
            f'<text class="mid name" transform="translate(13 {middle[1]:.1f}) rotate(-90)">{text(left)}</text>'
        )
    return parts


def beside(y: Axis) -> float:
    """Return the room that an axis's name and ticks take to its left, in pixels."""
    return 28 + _DIGIT * _longest(y.ticks())


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _apart(wanted: Sequence[tuple[float, str]], gap: float, top: float, bottom: float) -> dict[str, float]:
    """Return label heights near those wanted, at least ``gap`` apart, between top and bottom."""
    placed: dict[str, float] = {}
    last = top - gap
    for height, name in sorted(wanted):
        last = placed[name] = max(height, last + gap)
    ceiling = bottom
    for name in reversed(list(placed)):
        ceiling = placed[name] = min(placed[name], ceiling)
        ceiling -= gap
    return placed


def svg(parts: Sequence[str], width: float, height: float, summary: str) -> str:
    """Return a drawing of its own size, told in words by ``summary``."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text(summary)}" '
        f'style="max-width:{width:g}px">{"".join(parts)}</svg>'
    )

"""A survey on the page: σ_1 of every token with its interval, what the shared basis missed, and the claims made."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from detjac_lanczos.reading.page.charts import Axis, axes, beside, log_range, svg
from detjac_lanczos.reading.page.markup import badge, dotted, facts, figure, meter, numbered, text, token_text
from detjac_lanczos.reading.page.token_card import READING_HEADS, anchor, reading_cells, token_card, token_table
from detjac_lanczos.reading.record_values import (
    ESTIMATE,
    NONE_ABOVE_ZERO,
    Record,
    chance_of,
    left_estimated,
    percent,
    significant,
    singular_values,
)

_WIDE, _NARROW = 1152.0, 360.0
_SMALLEST_MARK, _LARGEST_MARK = 1.1, 4.0
_PIXELS_A_TICK = 46


def estimates_counted(tokens: Sequence[Record]) -> str:
    """Return how many tokens are left as estimates, for the heading."""
    left = left_estimated(tokens)
    return f"{len(left)} estimated, {sum(survey['flagged'] for survey in left)} of these flagged"


def survey_sections(tokens: Sequence[Record], span: tuple[float, float], note: str) -> str:
    """Return the sections of one prompt's survey: chart, table, and the cards of the tokens that were polished.

    ``span``: the log10 range of singular values that all cards share; ``note``: how their vectors are read.
    """
    known = [token for token in tokens if token["survey"] and singular_values(token)]
    polished = [token for token in known if token["status"] != ESTIMATE]
    cards = "".join(token_card(token, span) for token in polished)
    certified = (
        "<section><h2>Certified tokens</h2>"
        '<p class="note">These were polished: their triplets were searched one by one and measured. '
        f"{note}</p>{cards}</section>"
    )
    return (
        f"<section><h2>Survey</h2>{_overview(known)}</section>"
        f"<section><h2>Token by token</h2>{_table(tokens)}</section>"
        f"{certified if cards else ''}"
    )


def _overview(tokens: Sequence[Record]) -> str:
    if not tokens:
        return "<p>Nothing could be estimated.</p>"
    told, marks = facts(_figures(tokens), "facts in-columns"), [_mark(token) for token in tokens]
    if not any(end > 0 for _, _, _, ends in marks for end in ends):
        return f"<p>{NONE_ABOVE_ZERO}</p>{told}"
    caption = (
        "σ₁ of every token's Jacobian. A bar runs from what was found, which σ₁ is at least, to what it is at most "
        f"with {chance_of(tokens[0]['survey'])}. "
        '<span class="mark estimate">●</span> Estimates; <span class="mark flagged">◆</span> flagged ones, which may '
        'be off by more than 5 %; <span class="mark polished">■</span> polished ones, whose σ₁ is certified.'
    )
    summary = f"σ₁ of {len(tokens)} tokens with its interval, on a log scale; the table below has the numbers"
    charts = "".join(_chart(marks, summary, width) for width in (_WIDE, _NARROW))
    return figure(charts, caption, "by-width") + told


def _mark(token: Record) -> tuple[str, str, float, tuple[float, float]]:
    """Return a token's kind, its name, its σ_1 and the interval of it."""
    survey = token["survey"]
    name = f"{token['index']} {token['token']}"
    if token["status"] != ESTIMATE:
        value = singular_values(token)[0]
        return "polished", name, value, (value, value)
    low, high = survey["sigma_1"]
    return "flagged" if survey["flagged"] else "estimate", name, survey["values"][0], (low, high)


def _chart(marks: Sequence[tuple[str, str, float, tuple[float, float]]], summary: str, width: float) -> str:
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
    size = min(_LARGEST_MARK, max(_SMALLEST_MARK, 0.3 * (x.end - x.start) / len(marks)))
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


def _figures(tokens: Sequence[Record]) -> list[tuple[str, str]]:
    firsts = [(_mark(token)[2], numbered(token)) for token in tokens]
    shares = [(token["survey"]["share"], numbered(token)) for token in tokens]
    left = left_estimated(tokens)
    (largest, first), (smallest, last), (most, whose) = max(firsts), min(firsts), max(shares)
    return [
        ("Tokens estimated", f"{len(left)} <small>{sum(survey['flagged'] for survey in left)} flagged</small>"),
        ("Tokens polished", str(len(tokens) - len(left))),
        ("Median share of ‖J‖² missed", percent(median(share for share, _ in shares))),
        ("Largest σ₁", f"{first} {significant(largest)}"),
        ("Smallest σ₁", f"{last} {significant(smallest)}"),
        ("Largest share missed", f"{whose} {percent(most)}"),
    ]


def _table(tokens: Sequence[Record]) -> str:
    numbers = ("σ<sub>1</sub>", "at least", "at most", "Missed")
    heads = "".join(f'<th scope="col" class="num">{name}</th>' for name in numbers)
    rows = "".join(_row(token) for token in tokens)
    return (
        '<p class="note">σ₁ ≈ is an estimate on either side. Missed is the share of ‖J‖² outside the left vectors that '
        "all tokens share. u₁ and v₁ are read as on any page of a run; of estimates, what J x adds and the stable rank "
        "are estimates too.</p>"
        + token_table("glance survey", f'{heads}{READING_HEADS}<th scope="col">Claim</th>', rows)
    )


def _row(token: Record) -> str:
    survey, values = token["survey"], singular_values(token)
    if not survey or not values:
        return (
            f'<tr id="{anchor(token)}"><td class="num">{token["index"]}</td>'
            f'<th scope="row">{token_text(token["token"])}</th>'
            f'<td colspan="8">{text(token["advice"])}</td><td>{badge(token["status"])}</td></tr>'
        )
    low, high = survey["sigma_1"]
    estimated = token["status"] == ESTIMATE
    if estimated:
        opening, name, first = f'<tr id="{anchor(token)}">', token_text(token["token"]), survey["values"][0]
        claim = badge("flagged") if survey["flagged"] else badge(token["status"])
    else:
        opening, first = "<tr>", values[0]
        name = f'<a href="#{anchor(token)}">{token_text(token["token"])}</a>'
        line = token["certificate"]["line"] if token["certificate"] else ""
        claim = f'{badge(token["status"])}<small class="line">{text(line)}</small>'
    return (
        f'{opening}<td class="num">{token["index"]}</td><th scope="row">{name}</th>'
        f'<td class="num first">{"≈ " if estimated else ""}{significant(first)}</td>'
        f'<td class="num">{significant(low)}</td><td class="num">{significant(high)}</td>'
        f'<td class="num">{percent(survey["share"])}{meter(survey["share"])}</td>'
        f"{reading_cells(token)}<td>{claim}</td></tr>"
    )

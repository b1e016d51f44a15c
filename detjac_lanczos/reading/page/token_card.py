"""The card of one token: its spectrum, its certificate, what its triplets decode to, what it contributes."""

from __future__ import annotations

from detjac_lanczos.reading.page import charts
from detjac_lanczos.reading.page.markup import badge, facts, figure, meter, pills, text, token_text
from detjac_lanczos.reading.record_values import (
    NONE_ABOVE_ZERO,
    Record,
    claim_of,
    energy_held,
    found_none,
    needs_advice,
    percent,
    relative_residual,
    scientific,
    significant,
    singular_values,
)

READING_HEADS = (
    '<th scope="col" class="num">Stable rank</th><th scope="col" class="num">‖J x‖ / ‖y‖</th>'
    '<th scope="col">u₁ says</th><th scope="col">v₁ reads</th>'
)
"""Above `reading_cells`."""
_TRIPLETS = 8
_DECODED = 6
_RANK = 3
"""Digits of a stable rank."""


def anchor(token: Record) -> str:
    """Return the id of a token's card."""
    return f"token-{token['prompt']}-{token['index']}"


def token_card(token: Record, span: tuple[float, float]) -> str:
    """Return a token's card. ``span``: the log10 range of singular values that all cards share."""
    advice = f'<p class="advice">{text(token["advice"])}</p>' if needs_advice(token) else ""
    values = singular_values(token)
    chart = f"<p>{NONE_ABOVE_ZERO}</p>" if values else ""
    if any(value > 0 for value in values):
        listed = ", ".join(significant(value) for value in values)
        chart = figure(charts.spectrum(values, span, f"Singular values on a log scale: {listed}"))
    where = f"token {token['index']}" + ("" if token["id"] is None else f" · id {token['id']}")
    return (
        f'<article class="card" id="{anchor(token)}"><header><h3>{token_text(token["token"])}</h3>'
        f'<span class="where">{where}</span>{badge(token["status"])}</header>'
        f'<p class="claim">{text(claim_of(token))}</p>{advice}'
        f'<div class="inside"><div>{chart}{facts(_facts(token))}</div><div>{_triplets(token)}</div></div></article>'
    )


def token_table(kind: str, heads: str, rows: str) -> str:
    """Return a table of tokens, which scrolls by itself; ``heads`` stand behind those of the index and the token."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="All tokens"><table class="{kind}"><thead><tr>'
        f'<th scope="col" class="num">#</th><th scope="col">Token</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def reading_cells(token: Record) -> str:
    """Return the cells of a table of tokens that say the stable rank, ‖J x‖ / ‖y‖ and what u₁ and v₁ decode to."""
    contribution = token["contribution"]
    share = f"{percent(contribution['share'])}{meter(contribution['share'])}" if contribution else "–"
    rank = "–" if token["stable_rank"] is None else significant(token["stable_rank"], _RANK)
    words = (
        "".join(token_text(entry["token"]) for first in token[side][:1] for entry in first[:3])
        for side in ("left", "right")
    )
    decoded = "".join(f'<td class="words">{side}</td>' for side in words)
    return f'<td class="num">{rank}</td><td class="num">{share}</td>{decoded}'


def stable_rank_text(token: Record) -> str:
    """Return the stable rank with its interval, or a dash."""
    if token["stable_rank"] is None:
        return "–"
    low, high = token["stable_rank_interval"]
    value, low, high = (significant(rank, _RANK) for rank in (token["stable_rank"], low, high))
    return f'{value} <span class="note">[{low}, {high}]</span>'


def _facts(token: Record) -> list[tuple[str, str]]:
    pairs = [] if found_none(token) else [("Stable rank ‖J‖²<sub>F</sub> / σ₁²", stable_rank_text(token))]
    residual = relative_residual(token)
    if residual is not None:
        pairs.append(("Largest relative residual", scientific(residual)))
    if token["floor"]:
        pairs.append(("Noise floor c ε σ₁ √passes", scientific(token["floor"])))
    if (held := energy_held(token)) is not None:
        pairs.append((f"Held by these {len(singular_values(token))}", held))
    contribution = token["contribution"]
    if contribution is not None:
        pairs += [
            ("Contribution ‖J x‖ / ‖y‖", percent(contribution["share"])),
            ("Cosine of J x with y", f"{contribution['cosine']:.3f}"),
        ]
        if count := len(token["singular_values"]):
            pairs.append((f"Share of ‖J x‖² in these {count}", percent(contribution["captured"])))
    return pairs


def _triplets(token: Record) -> str:
    if not singular_values(token):
        return ""
    rows = []
    for j, value in enumerate(singular_values(token)[:_TRIPLETS]):
        rows.append(
            f'<tr role="row"><th scope="row" role="rowheader" class="sigma num"><small>σ{_subscript(j + 1)}</small> '
            f"{significant(value)}</th>"
            f'<td role="cell" data-side="towards the output">{pills(token["left"][j], "left", _DECODED)}</td>'
            f'<td role="cell" data-side="from the input">{pills(token["right"][j], "right", _DECODED)}</td></tr>'
        )
    return (
        '<table class="triplets" role="table"><thead role="rowgroup"><tr role="row">'
        '<th scope="col" role="columnheader">Value</th>'
        '<th scope="col" role="columnheader"><span class="side-left">Left vector</span>: the output it drives</th>'
        '<th scope="col" role="columnheader"><span class="side-right">Right vector</span>: the input it reads</th>'
        f'</tr></thead><tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))

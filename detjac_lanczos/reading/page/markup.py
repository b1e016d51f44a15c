"""Pieces of HTML: everything that comes from a model or a prompt passes through here, escaped and made visible."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from detjac_lanczos.reading.record_values import ESTIMATE, SUCCESSFUL, Record, percent
from detjac_lanczos.reading.visible import visible

_SPECIAL = re.compile(r"·|↵|⇥|␍|∅|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}")

_BADGES = {ESTIMATE: ("plain", "≈"), "flagged": ("warn", "◆")}


def text(value: object) -> str:
    """Return a value as escaped text."""
    return escape(str(value), quote=True)


def token_text(token: str) -> str:
    """Return a token in its own direction and any script, with its spaces and control characters as muted marks."""
    shown = _SPECIAL.sub(lambda mark: f'<span class="ws">{mark[0]}</span>', text(dotted(token)))
    return f'<bdi class="tok">{shown}</bdi>'


def numbered(token: Record) -> str:
    """Return a token of a record with its index, which tells it from others that look alike."""
    return f"{token_text(token['token'])} <small>#{token['index']}</small>"


def dotted(token: str) -> str:
    """Return a token made visible, its spaces as middle dots: narrower in print than ␣."""
    return visible(token).replace("␣", "·")


def pills(entries: Sequence[Record], side: str, count: int) -> str:
    """Return decoded tokens as a list of bars, each as long as its score relative to the best."""
    best = max((abs(entry["score"]) for entry in entries), default=0.0) or 1.0
    items = []
    for entry in entries[:count]:
        score = percent(entry["score"]) if side == "left" else f"{entry['score']:.2f}"
        logit = f", logit {entry['logit']:.3f}" if entry.get("logit") is not None else ""
        width = 100 * abs(entry["score"]) / best
        items.append(
            f'<li style="--w:{width:.0f}%" title="id {entry["id"]}{logit}">{token_text(entry["token"])}'
            f'<span class="score">{score}</span></li>'
        )
    return f'<ul class="pills {side}">{"".join(items)}</ul>'


def badge(status: str) -> str:
    """Return a solve's status as a badge with a sign, so that colour is not all that tells."""
    kind, sign = _BADGES.get(status, ("good", "✓") if status in SUCCESSFUL else ("bad", "!"))
    return f'<span class="badge {kind}">{sign} {text(status.replace("_", " "))}</span>'


def meter(share: float) -> str:
    """Return a bar of a share between 0 and 1, beside its number."""
    width = 100 * min(1.0, max(0.0, share))
    return f'<span class="meter" aria-hidden="true"><i style="width:{width:.1f}%"></i></span>'


def facts(pairs: Sequence[tuple[str, str]], kind: str = "facts") -> str:
    """Return a description list of (term, HTML)."""
    return (
        f'<dl class="{kind}">'
        + "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in pairs)
        + "</dl>"
    )


def figure(svg: str, caption: str = "", kind: str = "") -> str:
    """Return a chart with its caption, if it has one."""
    told = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{svg}{told}</figure>'

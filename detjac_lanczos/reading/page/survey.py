"""A survey on the page: σ_1 of every token with its interval, what the shared basis missed, and the claims made."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from detjac_lanczos.reading.page.markup import badge, facts, figure, meter, numbered, text, token_text
from detjac_lanczos.reading.page.survey_chart import intervals
from detjac_lanczos.reading.page.token_card import anchor, reading_cells, token_card
from detjac_lanczos.reading.record_values import (
    ESTIMATE,
    Record,
    chance_of,
    left_estimated,
    percent,
    significant,
    singular_values,
)

_WIDE, _NARROW = 1152.0, 360.0


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
    caption = (
        "σ₁ of every token's Jacobian. A bar runs from what was found, which σ₁ is at least, to what it is at most "
        f"with {chance_of(tokens[0]['survey'])}. "
        '<span class="mark estimate">●</span> Estimates; <span class="mark flagged">◆</span> flagged ones, which may '
        'be off by more than 5 %; <span class="mark polished">■</span> polished ones, whose σ₁ is certified.'
    )
    summary = f"σ₁ of {len(tokens)} tokens with its interval, on a log scale; the table below has the numbers"
    charts = "".join(intervals([_mark(token) for token in tokens], summary, width) for width in (_WIDE, _NARROW))
    return figure(charts, caption, "by-width") + facts(_figures(tokens), "facts in-columns")


def _mark(token: Record) -> tuple[str, str, float, tuple[float, float]]:
    """Return a token's kind, its name, its σ_1 and the interval of it."""
    survey = token["survey"]
    name = f"{token['index']} {token['token']}"
    if token["status"] != ESTIMATE:
        value = singular_values(token)[0]
        return "polished", name, value, (value, value)
    low, high = survey["sigma_1"]
    return "flagged" if survey["flagged"] else "estimate", name, survey["values"][0], (low, high)


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
    rows = "".join(_row(token) for token in tokens)
    return (
        '<p class="note">σ₁ ≈ is an estimate on either side. Missed is the share of ‖J‖² outside the left vectors that '
        "all tokens share. u₁ and v₁ are read as on any page of a run; of estimates, what J x adds and the stable rank "
        "are estimates too.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="All tokens"><table class="glance survey">'
        '<thead><tr><th scope="col" class="num">#</th><th scope="col">Token</th>'
        '<th scope="col" class="num">σ<sub>1</sub></th>'
        '<th scope="col" class="num">at least</th><th scope="col" class="num">at most</th>'
        '<th scope="col" class="num">Missed</th><th scope="col" class="num">Stable rank</th>'
        '<th scope="col" class="num">‖J x‖ / ‖y‖</th><th scope="col">u₁ says</th><th scope="col">v₁ reads</th>'
        f'<th scope="col">Claim</th></tr></thead><tbody>{rows}</tbody></table></div>'
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

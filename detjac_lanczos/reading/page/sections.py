"""The sections of the page, from the record of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from detjac_lanczos.reading.page import charts
from detjac_lanczos.reading.page.markup import badge, dotted, facts, figure, meter, numbered, text, token_text
from detjac_lanczos.reading.page.repeat import command_line, python_call
from detjac_lanczos.reading.page.survey import survey_sections
from detjac_lanczos.reading.page.token_card import READING_HEADS, anchor, reading_cells, token_card, token_table
from detjac_lanczos.reading.record_values import (
    Record,
    earlier_position,
    estimate_of,
    has_offset,
    model_name,
    percent,
    prompt_text,
    scientific,
    significant,
    singular_values,
    surveyed,
    switched_off,
    tokens_of,
    why_no_values,
)
from detjac_lanczos.reading.target_words import how_left_is_read, target_name

_COLUMNS = 8
_NARROW = 360.0


def prompt_section(record: Record, vectors: Mapping[str, Tensor], prompt: int) -> str:
    """Return everything about one prompt: its tokens, prediction, reconstruction, spectra and cards."""
    tokens = tokens_of(record, prompt)
    title = (
        f'<h2 class="prompt"><bdi>{text(prompt_text(record, prompt))}</bdi></h2>' if len(record["prompts"]) > 1 else ""
    )
    values = [value for token in tokens for value in singular_values(token)]
    span = charts.log_range(values)
    begin = (
        f"<section>{title}{_chips(record, prompt, tokens)}"
        f'<div class="columns">{_prediction(record, prompt)}{_reconstruction(record, vectors, prompt)}</div></section>'
    )
    if not tokens:
        return begin
    if surveyed(record):
        return begin + survey_sections(tokens, span, _reading_note(record))
    cards = "".join(token_card(token, span) for token in tokens)
    note = f'<p class="note">{_reading_note(record)}</p>' if values else ""
    return (
        f"{begin}<section><h2>Spectra</h2>{_spectra(record, tokens)}</section>"
        f"<section><h2>At a glance</h2>{_glance(tokens)}</section>"
        f"<section><h2>Token by token</h2>{note}{cards}</section>"
    )


def _reading_note(record: Record) -> str:
    read, score = how_left_is_read(record)
    return (
        f'<span class="side-left">Left vectors</span> {read}, with the sign that agrees with the '
        f"{text(target_name(record))}; the figure is {score}. "
        '<span class="side-right">Right vectors</span> are read by the input embeddings nearest to them; the figure is '
        "the cosine. Bars compare within one vector."
    )


def about(record: Record) -> str:
    """Return what was run, what it cost and how to repeat it."""
    definition, work, options = record["definition"], record["work"], record["options"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    pairs = [
        ("Model", f"{text(model_name(record))} ({text(definition['family'])}), {text(record['dtype'])}"),
        *([("Switched off", text(", ".join(off)))] if (off := switched_off(record)) else []),
        ("Weights", f"<code>{text(record['fingerprint'])}</code>"),
        *(
            [("Jacobian", f"of the weights {text(definition['weights'])}, computed in {text(record['dtype'])}")]
            if definition.get("weights")
            else []
        ),
        ("Input x", f"{text(definition['input'])}"),
        ("Output y", f"{text(definition['target_definition'])}, {_position(record)}"),
        ("Frozen", f"{text(definition['frozen'])} (freeze={text(record['freeze'])})"),
        ("Method", f"{text(work['method'])}: {text(work['why'])}"),
        (
            "Counted work",
            f"{work['row_sweeps']:,.0f} row-sweeps against {work['dense_row_sweeps']:,.0f} for dense Jacobians; "
            f"{work['columns']:,} columns in {work['passes']:,} passes",
        ),
        ("Time", " · ".join(f"{text(name)} {seconds:.2f} s" for name, seconds in record["times"].items())),
        ("Recorded choices", text(_choices(record["choices"]))),
        ("Seed", text(options["seed"])),
        ("Made", f"{text(record['created'])} with {text(versions)}"),
    ]
    command = command_line(record)
    shell = f"<pre><code>{text(command)}</code></pre>" if command else ""
    return (
        f"<section><h2>What was run</h2>{facts(pairs, 'plain-facts')}</section>"
        f"<section><h2>Run it again</h2>{shell}<pre><code>{text(python_call(record))}</code></pre></section>"
    )


def _position(record: Record) -> str:
    asked = record["options"]["position"]
    if len(record["prompts"]) == 1 or asked >= 0:
        return f"position {record['definition']['position']}"
    return "the last position of each prompt" if asked == -1 else f"position {asked} of each prompt"


def _choices(choices: Record) -> str:
    """Return the choices of a run in a line, without tables in which none was made; long lists only counted."""
    parts = []
    for name, made in choices.items():
        if not made:
            continue
        few = [f"{key} {_choice(value)}" for key, value in made.items()] if isinstance(made, Mapping) else [str(made)]
        parts.append(
            f"{name}: {', '.join(few)}" if len(few) <= 4 else f"{name}: {len(few)} choices, listed in run.json"
        )
    return " · ".join(parts) or "none"


def _choice(made: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in made.items()) if isinstance(made, Mapping) else str(made)


def _chips(record: Record, prompt: int, tokens: list[Record]) -> str:
    """Return every token of the prompt; those with a card link to it and show their contribution."""
    analysed = {token["index"]: token for token in tokens}
    items = []
    for index, name in enumerate(record["prompt_tokens"][prompt]):
        token = analysed.get(index)
        if token is None:
            items.append(f'<li><span class="plain">{token_text(name)}</span></li>')
            continue
        bar = meter(token["contribution"]["share"]) if token["contribution"] else ""
        items.append(f'<li><a href="#{anchor(token)}">{token_text(name)}{bar}</a></li>')
    position = earlier_position(record, prompt)
    where = "" if position is None else f" at token {position}, {token_text(record['prompt_tokens'][prompt][position])}"
    bars = (
        f"The bar under a token is the length of what it adds to the {text(target_name(record))}{where}, ‖J x‖ / ‖y‖."
    )
    told = bars if any(token["contribution"] for token in tokens) else ""
    told = told if tokens else "No token of this prompt was chosen."
    note = f'<p class="note">{told}</p>' if told else ""
    return (
        f"<h2>The prompt in {len(items)} token{'s' if len(items) > 1 else ''}</h2>"
        f'{note}<ol class="chips">{"".join(items)}</ol>'
    )


def _prediction(record: Record, prompt: int) -> str:
    candidates = record["predictions"][prompt]
    best = candidates[0]["probability"] or 1.0
    rows = "".join(
        f'<li><span class="name">{token_text(c["token"])}</span>{meter(c["probability"] / best)}'
        f'<span class="num">{percent(c["probability"])}</span></li>'
        for c in candidates
    )
    after = "" if earlier_position(record, prompt) is None else " after the whole prompt"
    whose = "altered network" if switched_off(record) else "model"
    return f'<div><h2>What the {whose} says next{after}</h2><ol class="bars">{rows}</ol></div>'


def _reconstruction(record: Record, vectors: Mapping[str, Tensor], prompt: int) -> str:
    errors, offset = record["reconstructions"][prompt], has_offset(record, prompt)
    name, truth = target_name(record), vectors[f"y.{prompt}"].tolist()
    if switched_off(record):
        share = f", the offset is {_unbroken(errors['offset_share'])} of it" if offset else ""
        told = f"No pass of the model gives it, to hold the {estimate_of(record, prompt)} against{share}."
        return f'<div><h2>The {text(name)} is the altered network\'s own</h2><p class="note">{told}</p></div>'
    clouds = [("dot", vectors[f"reconstruction.detached.{prompt}"].tolist())]
    caption = (
        f'<span class="legend-dot">● Detached</span>: the {estimate_of(record, prompt)} gives the '
        f"{text(name)} to {scientific(errors['relative_error'])}"
    )
    if (own := errors["model_relative_error"]) is not None:
        caption += f", and what the model itself returns, with its own roundings, to {scientific(own)}"
    caption += "."
    ordinary = errors["ordinary_relative_error"]
    if ordinary is not None:
        clouds.insert(0, ("cross", vectors[f"reconstruction.ordinary.{prompt}"].tolist()))
        without = ", whose sum has no offset," if offset else ""
        caption += f' <span class="legend-cross">✕ Ordinary</span> Jacobians{without} miss it by {_unbroken(ordinary)}.'
    if offset:
        caption += f" The offset is {_unbroken(errors['offset_share'])} of the {text(name)}."
    summary = f"Reconstructed against true {name}, on the diagonal to {scientific(errors['relative_error'])}"
    names = f"{name}, entry of y", estimate_of(record, prompt)
    chart = charts.scatter(truth, clouds, names, summary) + charts.scatter(truth, clouds, names, summary, _NARROW)
    maps = "The linear map and its offset give" if offset else "The linear map gives"
    return f"<div><h2>{maps} the {text(name)}</h2>{figure(chart, caption, 'by-width')}</div>"


def _unbroken(share: float) -> str:
    return percent(share).replace(" ", "\u00a0")


def _spectra(record: Record, tokens: list[Record]) -> str:
    lines = [(f"{token['index']} {dotted(token['token'])}", singular_values(token)) for token in tokens]
    if not any(value > 0 for _, values in lines for value in values):
        told = why_no_values(record, tokens[0]["prompt"])
        return f'<div class="beside"><p>{told}</p>{facts(_extremes(tokens))}</div>'
    several = len(lines) > 1
    summary = (
        f"Singular values of {len(lines)} token{'s' if several else ''} on a log scale; the table below has the numbers"
    )
    caption = (
        "Singular values of every token's Jacobian, from the first token (dark) to the last (light)."
        if several
        else "Singular values of the token's Jacobian."
    )
    chart = figure(charts.spectra(lines, summary) + charts.spectra(lines, summary, _NARROW), caption, "by-width")
    return f'<div class="beside">{chart}{facts(_extremes(tokens))}</div>'


def _extremes(tokens: list[Record]) -> list[tuple[str, str]]:
    """Return the largest and the smallest of what is known of every token; where it is known of one alone, that."""
    firsts = [(singular_values(t)[0], numbered(t)) for t in tokens if singular_values(t)]
    ranks = [(t["stable_rank"], numbered(t)) for t in tokens if t["stable_rank"] is not None]
    parts = [(t["contribution"], numbered(t)) for t in tokens if t["contribution"]]
    captured = [
        (t["contribution"]["captured"], numbered(t)) for t in tokens if t["contribution"] and singular_values(t)
    ]
    known: list[tuple[str, list[tuple[float, str]], Callable[[float], str]]] = [
        ("σ₁", firsts, significant),
        ("stable rank", ranks, lambda rank: significant(rank, 3)),
        ("‖J x‖ / ‖y‖", [(part["share"], name) for part, name in parts], percent),
        ("share of ‖J x‖² captured", captured, percent),
    ]
    pairs = []
    for name, found, shown in known:
        if len(found) == 1:
            value, token = found[0]
            label = name[0].upper() + name[1:] if name[0].isascii() else name
            pairs.append((label, shown(value) if len(tokens) == 1 else f"{token} {shown(value)}"))
            continue
        for word, choose in (("Largest", max), ("Smallest", min)):
            if found:
                value, token = choose(found)
                pairs.append((f"{word} {name}", f"{token} {shown(value)}"))
    return pairs


def _glance(tokens: list[Record]) -> str:
    found = [singular_values(token) for token in tokens]
    count = min(_COLUMNS, max((len(values) for values in found), default=0))
    low, high = charts.log_range([value for values in found for value in values])
    heat = charts.Axis(low, high, 0, 42, log=True)
    heads = "".join(f'<th scope="col" class="num">σ<sub>{j + 1}</sub></th>' for j in range(count))
    rows = []
    for token, values in zip(tokens, found, strict=True):
        cells = "".join(
            f'<td class="num heat" style="--h:{heat(value):.0f}%">{significant(value, 3)}</td>'
            for value in values[:count]
        ) + "<td></td>" * (count - len(values[:count]))
        rows.append(
            f'<tr><td class="num">{token["index"]}</td><th scope="row"><a href="#{anchor(token)}">'
            f"{token_text(token['token'])}</a></th><td>{badge(token['status'])}</td>{cells}"
            f"{reading_cells(token)}</tr>"
        )
    return token_table("glance", f'<th scope="col">Status</th>{heads}{READING_HEADS}', "".join(rows))

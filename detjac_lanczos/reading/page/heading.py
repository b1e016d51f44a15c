"""The head of the page: the prompt with what the model says next, and the key figures of the run."""

from __future__ import annotations

from detjac_lanczos.frozen.drop import named_parts
from detjac_lanczos.reading.page.markup import facts, text, token_text
from detjac_lanczos.reading.page.survey import estimates_counted
from detjac_lanczos.reading.record_values import (
    SUCCESSFUL,
    Record,
    asked_for,
    earlier_position,
    has_offset,
    is_complete,
    model_name,
    percent,
    scientific,
    share_of_dense,
    singular_values,
    surveyed,
    switched_off,
    text_read,
)
from detjac_lanczos.reading.target_words import is_one_entry, target_name
from detjac_lanczos.reading.visible import shortened, visible

_LONG = 90
_LONGEST = 420


def heading(record: Record) -> str:
    """Return the title: the (first) prompt and the token the model goes on with, and the key figures of the run.

    Where the output is that of an earlier position, the title is the text up to there, and no token follows it.
    """
    title = shortened(text_read(record, 0), _LONGEST)
    size = ' class="long"' if len(title) > _LONG else ""
    prompts = range(len(record["prompts"]))
    more = len(prompts) - 1
    others = f" · and {more} more prompt{'s' if more > 1 else ''}" if more else ""
    offset = ", plus an offset" if any(has_offset(record, prompt) for prompt in prompts) else ""
    name = target_name(record)
    speaker, without = "the model", ""
    if off := switched_off(record):
        speaker, without = "the altered network", f", and with {text(named_parts(off))} switched off"
    matter = f"what they make {speaker} say" if name in ("output", "logits") else f"what they do to the {text(name)}"
    stream = None if record["options"]["source"] == "embeddings" else text(record["definition"]["input"])
    whose, part = (f"{stream}, token by token", "that stream") if stream else ("each input token", "a token")
    return (
        '<header class="top"><p class="kicker"><span>Detached Jacobians</span> · '
        f"{text(model_name(record))}{others}</p>"
        f"<h1{size}><bdi>{text(title)}</bdi>{_continuation(record)}</h1>"
        '<p class="lead">One forward pass, with its normalisers, gates and attention weights held at the values they '
        f"took{without}, is a linear map of {whose}{offset}. These are the leading singular vectors of those maps: "
        f"which directions of {part} matter, and {matter}.</p>"
        f"{facts(_key_figures(record), 'key')}</header>"
    )


def _continuation(record: Record) -> str:
    """Return the token that follows the first prompt, where that is what the output says."""
    if earlier_position(record, 0) is not None:
        return ""
    token = record["predictions"][0][0]["token"]
    space = " " if token.startswith(" ") or record["options"]["chat"] else ""
    return f'{space}<span class="next"><bdi>{text(visible(token.lstrip(" ")))}</bdi></span>'


def _key_figures(record: Record) -> list[tuple[str, str]]:
    following, tokens = record["predictions"][0][0], record["tokens"]
    work, error = record["work"], record["reconstructions"][0]["relative_error"]
    unit = "‖ŷ − y‖ / ‖y‖" if is_one_entry(record) else "std(ŷ − y) / std(y)"
    found = sum(token["status"] in SUCCESSFUL for token in tokens)
    estimated = f"; {estimates_counted(tokens)}" if surveyed(record) else ""
    whose = " (first prompt)" if len(record["prompts"]) > 1 else ""
    after = " after the whole prompt" if earlier_position(record, 0) is not None else ""
    rebuilt = (f"Reconstruction error{whose}", f"{scientific(error)} <small>{unit}</small>")
    if off := switched_off(record):
        rebuilt = ("Switched off", f"{len(off)} <small>{text(named_parts(off))}</small>")
    return [
        (
            f"Next token{after}{whose}",
            f"{token_text(following['token'])} <small>{percent(following['probability'])}</small>",
        ),
        rebuilt,
        (
            _what_was_done(record),
            f"{found} of {len(tokens)} <small>{text(_of_what(record))}{estimated}</small>",
        ),
        ("Work", f"{text(share_of_dense(work))} <small>of a dense Jacobian's row-sweeps</small>"),
        ("Time", f"{record['times']['total']:.1f} s <small>{work['seconds']:.1f} s of it in the solver</small>"),
    ]


def _what_was_done(record: Record) -> str:
    """Return what the figure of tokens counts."""
    if _only_searched(record):
        return "Tokens searched"
    return "Tokens certified" if record["options"]["certify"] else "Tokens converged"


def _of_what(record: Record) -> str:
    """Return what was asked for; where all above a threshold was, also what was found, and whether that is all."""
    tolerance = f"tolerance {record['options']['tol']:g}"
    if not _only_searched(record):
        return f"{asked_for(record)}, {tolerance}"
    tokens = record["tokens"]
    count, complete = sum(len(singular_values(token)) for token in tokens), sum(map(is_complete, tokens))
    claimed = f"claimed for {complete} of them" if complete else "not claimed"
    triplets = "triplets" if count > 1 else "triplet"
    found = f"{count or 'no'} {triplets} found above {record['options']['threshold']:g}, {tolerance}"
    return f"{found}; that there are no {'more' if count else 'such'} is {claimed}"


def _only_searched(record: Record) -> bool:
    """Whether all triplets above a threshold were asked for and not of every token is claimed that it has them."""
    return record["options"]["threshold"] is not None and not all(map(is_complete, record["tokens"]))

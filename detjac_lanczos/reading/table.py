"""The text table of a run, for terminals and logs."""

from __future__ import annotations

from detjac_lanczos.reading.record_values import (
    Record,
    claim_of,
    earlier_position,
    energy_held,
    has_offset,
    model_name,
    needs_advice,
    percent,
    prompt_text,
    relative_residual,
    share_of_dense,
    significant,
    singular_values,
    surveyed,
    switched_off,
    tokens_of,
)
from detjac_lanczos.reading.survey_table import survey_heading, survey_line, survey_summary
from detjac_lanczos.reading.target_words import is_one_entry
from detjac_lanczos.reading.visible import fit, flowed, joined, visible, wrapped

WIDTH = 110
_NARROWEST = 80
_VALUES = 8
_VALUE = 8
_INDENT = 4
_TOKEN = 13
_BEFORE_VALUES = 4 + _TOKEN
_LABEL = 16
_BESIDE_VALUES = 46
_BETWEEN = " · "


def render_table(record: Record, width: int = WIDTH) -> str:
    """Return the table that ``print(run)`` and ``detjac svd`` show.

    Parameters
    ----------
    record : mapping
        The record of a run (``run.json``).
    width : int
        Columns of the terminal; 80 at least and 110 at most are used.

    Returns
    -------
    str
    """
    width = max(_NARROWEST, min(width, WIDTH))
    definition = record["definition"]
    weights = f"weights {definition['weights']} · " if definition.get("weights") else ""
    asked = (
        f"{model_name(record)} · {weights}{record['dtype']} · freeze={record['freeze']} · "
        f"from {definition['input']} to {definition['target_definition']}"
    )
    lines = wrapped(asked, width)
    survey = surveyed(record)
    shown = min(_VALUES, max((len(singular_values(token)) for token in record["tokens"]), default=0))
    abreast = min(shown, (width - _BESIDE_VALUES) // _VALUE)
    for prompt in range(len(record["prompts"])):
        heading = [survey_heading(width)] if survey else _heading(shown, abreast)
        lines += ["", fit(f"“{prompt_text(record, prompt)}”", width).rstrip()]
        lines += _output_after(record, prompt, width)
        tokens = tokens_of(record, prompt)
        if tokens:
            lines += [*heading, "─" * width]
            for token in tokens:
                lines += [survey_line(token, width)] if survey else _token_lines(token, shown, abreast, width)
            lines.append("─" * width)
        else:
            lines.append("no token of this prompt was chosen")
        if survey and tokens:
            lines += _labelled("survey", [part for told in survey_summary(tokens) for part in _fitted(told, width)])
        candidates = (f"{visible(c['token'])} {percent(c['probability'])}" for c in record["predictions"][prompt])
        whole = "" if earlier_position(record, prompt) is None else "after the whole prompt:  "
        following = joined(candidates, "   ", width - _LABEL - len(whole))
        lines += _labelled("next token", [whole + following])
        lines += _labelled("reconstruction", _reconstruction(record, prompt, width))
        if floor := _noise_floor(tokens):
            lines += _labelled("noise floor", [floor])
    return "\n".join([*lines, *_closing_lines(record, width)])


def _output_after(record: Record, prompt: int, width: int) -> list[str]:
    """Return the line that names the output's position where it is not the last one."""
    position = earlier_position(record, prompt)
    if position is None:
        return []
    token = visible(record["prompt_tokens"][prompt][position])
    return [fit(f"outputs are those at token {position}, {token}", width).rstrip()]


def _heading(shown: int, abreast: int) -> list[str]:
    first, *others = _rows([f"σ{j + 1}" for j in range(shown)], abreast)
    return [f"{'#':>3} {'token':<{_TOKEN}}{first}   {'stable rank':<18}{'residual':>8}", *others]


def _token_lines(token: Record, shown: int, abreast: int, width: int) -> list[str]:
    first, *others = _rows([_in_seven(value) for value in singular_values(token)[:shown]], abreast)
    residual = relative_residual(token)
    told = "" if residual is None else f"{residual:.1e}"
    name = fit(visible(token["token"]), _TOKEN - 1)
    lines = [f"{token['index']:>3} {name} {first}   {_stable_rank(token):<18}{told:>8}", *others]
    if singular_values(token):
        half = (width - _INDENT) // 2
        left, right = (f"{side:<7}" + _tokens(token[side], half - 8) for side in ("left", "right"))
        lines.append(" " * _INDENT + fit(left, half) + right)
    beneath = [f"{claim_of(token)} · {token['status']}"]
    if (held := energy_held(token)) is not None:
        beneath.append(f"held: {held}")
    if needs_advice(token):
        beneath.append(token["advice"])
    lines += [" " * _INDENT + part for told in beneath for part in wrapped(told, width - _INDENT)]
    return [line.rstrip() for line in lines]


def _rows(values: list[str], abreast: int) -> list[str]:
    """Return values so many to a line, those of further lines under those of the first."""
    cells = [f"{value:>{_VALUE}}" for value in values]
    first, *others = ["".join(cells[start : start + abreast]) for start in range(0, len(cells), abreast or 1)] or [""]
    return [f"{first:<{_VALUE * abreast}}", *(" " * _BEFORE_VALUES + row for row in others)]


def _in_seven(value: float) -> str:
    text = significant(value)
    return text if len(text) < 8 else f"{value:.1e}"


def _stable_rank(token: Record) -> str:
    if token["stable_rank"] is None:
        return ""
    low, high = token["stable_rank_interval"]
    return f"{token['stable_rank']:.3g} [{low:.3g}, {high:.3g}]"


def _tokens(decoded: list[list[Record]], width: int) -> str:
    """Return what the leading vector decodes to, as many tokens as fit."""
    return joined((visible(entry["token"]) for entry in decoded[0]), "  ", width) if decoded else ""


def _labelled(label: str, lines: list[str]) -> list[str]:
    """Return lines under each other, the first beside its label."""
    return [f"{'' if row else label:<{_LABEL}}{line}" for row, line in enumerate(lines)]


def _fitted(text: str, width: int) -> list[str]:
    """Return a text on lines that fit beside a label."""
    return wrapped(text, width - _LABEL)


def _reconstruction(record: Record, prompt: int, width: int) -> list[str]:
    """Return how far y is from what was rebuilt, and, on a line of its own, what biases and other Jacobians give."""
    errors, beside = record["reconstructions"][prompt], []
    units = {"norm_error": "norm/norm"}
    if not is_one_entry(record):
        units = {"relative_error": "std/std"} | units
    told = [f"{'–' if errors[name] is None else format(errors[name], '.2e')} ({unit})" for name, unit in units.items()]
    if switched_off(record):
        told = ["none: y is the altered network's own, which no pass of the model gives"]
    if errors["model_relative_error"] is not None:
        told.append(f"{errors['model_relative_error']:.2e} (std/std, of the model's own y)")
    if has_offset(record, prompt):
        beside.append(f"offset {percent(errors['offset_share'])} of y")
    if errors["ordinary_relative_error"] is not None:
        beside.append(f"with ordinary Jacobians {errors['ordinary_relative_error']:.3g}")
    return [line for parts in (told, beside) for line in flowed(parts, _BETWEEN, width - _LABEL)]


def _noise_floor(tokens: list[Record]) -> str:
    """Return the floors of all tokens, c ε σ_1 √passes each; empty where none has one."""
    floors = [f"{floor:.1e}" for floor in sorted(token["floor"] for token in tokens) if floor]
    between = " to ".join(dict.fromkeys((*floors[:1], *floors[-1:])))
    return between and f"{between}: claims are about values above it"


def _closing_lines(record: Record, width: int) -> list[str]:
    work = record["work"]
    counted = [
        f"{work['row_sweeps']:,.0f} row-sweeps",
        f"{share_of_dense(work)} of dense ({work['dense_row_sweeps']:,.0f})",
        f"{work['columns']:,} columns",
        f"{work['passes']:,} passes",
        work["method"],
    ]
    times = [f"{name} {seconds:.2f} s" for name, seconds in record["times"].items()]
    done = [*flowed(counted, _BETWEEN, width - _LABEL), *_fitted(str(work["why"]), width)]
    return ["", *_labelled("work", done), *_labelled("time", flowed(times, _BETWEEN, width - _LABEL))]

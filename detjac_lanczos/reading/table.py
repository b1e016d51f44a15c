"""The text table of a run, for terminals and logs."""

from __future__ import annotations

from detjac_lanczos.reading.record_values import (
    Record,
    earlier_position,
    energy_held,
    has_offset,
    needs_advice,
    percent,
    prompt_text,
    relative_residual,
    significant,
    singular_values,
    surveyed,
    tokens_of,
)
from detjac_lanczos.reading.survey_table import survey_heading, survey_line, survey_summary
from detjac_lanczos.reading.target_words import is_one_entry
from detjac_lanczos.reading.visible import fit, joined, visible, wrapped

_WIDTH = 110
_VALUES = 8
_INDENT = 4
_TOKEN = 13
_LABEL = 16


def render_table(record: Record) -> str:
    """Return the table that ``print(run)`` and ``detjac svd`` show.

    Parameters
    ----------
    record : mapping
        The record of a run (``run.json``).

    Returns
    -------
    str
    """
    definition = record["definition"]
    weights = f"weights {definition['weights']} · " if definition.get("weights") else ""
    asked = (
        f"{record['model']} · {weights}{record['dtype']} · freeze={record['freeze']} · "
        f"from {definition['input']} to {definition['target_definition']}"
    )
    lines = wrapped(asked, _WIDTH)
    survey = surveyed(record)
    shown = min(_VALUES, max((len(singular_values(token)) for token in record["tokens"]), default=0))
    for prompt in range(len(record["prompts"])):
        heading = survey_heading() if survey else _heading(shown)
        lines += ["", fit(f"“{prompt_text(record, prompt)}”", _WIDTH).rstrip()]
        lines += _output_after(record, prompt)
        tokens = tokens_of(record, prompt)
        if tokens:
            lines += [heading, "─" * _WIDTH]
            for token in tokens:
                lines += [survey_line(token, _WIDTH)] if survey else _token_lines(token, shown)
            lines.append("─" * _WIDTH)
        else:
            lines.append("no token of this prompt was chosen")
        if survey and tokens:
            lines += [_labelled("" if row else "survey", told) for row, told in enumerate(survey_summary(tokens))]
        candidates = (f"{visible(c['token'])} {percent(c['probability'])}" for c in record["predictions"][prompt])
        whole = "" if earlier_position(record, prompt) is None else "after the whole prompt:  "
        lines.append(_labelled("next token", whole + joined(candidates, "   ", _WIDTH - _LABEL - len(whole))))
        told = _reconstruction(record, prompt)
        lines += [_labelled("" if row else "reconstruction", line) for row, line in enumerate(told)]
        if floor := _noise_floor(tokens):
            lines.append(_labelled("noise floor", floor))
    return "\n".join([*lines, *_closing_lines(record)])


def _output_after(record: Record, prompt: int) -> list[str]:
    """Return the line that names the output's position where it is not the last one."""
    position = earlier_position(record, prompt)
    if position is None:
        return []
    token = visible(record["prompt_tokens"][prompt][position])
    return [fit(f"outputs are those at token {position}, {token}", _WIDTH).rstrip()]


def _heading(shown: int) -> str:
    values = "".join(f"{'σ' + str(j + 1):>8}" for j in range(shown))
    return f"{'#':>3} {'token':<{_TOKEN}}{values}   {'stable rank':<18}{'residual':>8}"


def _token_lines(token: Record, shown: int) -> list[str]:
    values = "".join(f"{_in_seven(value):>8}" for value in singular_values(token)[:shown])
    residual = relative_residual(token)
    told = "" if residual is None else f"{residual:.1e}"
    name = fit(visible(token["token"]), _TOKEN - 1)
    half = (_WIDTH - _INDENT) // 2
    left, right = (f"{side:<7}" + _tokens(token[side], half - 8) for side in ("left", "right"))
    certificate = token["certificate"]["line"] if token["certificate"] else "no certificate"
    lines = [
        f"{token['index']:>3} {name} {values:<{8 * shown}}   {_stable_rank(token):<18}{told:>8}",
        " " * _INDENT + fit(left, half) + right,
        " " * _INDENT + f"{certificate} · {token['status']}",
    ]
    if (held := energy_held(token)) is not None:
        lines.append(" " * _INDENT + f"held: {held}")
    if needs_advice(token):
        lines.append(" " * _INDENT + token["advice"])
    return [line.rstrip() for line in lines]


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


def _labelled(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}"


def _reconstruction(record: Record, prompt: int) -> list[str]:
    """Return how far y is from what was rebuilt, and, on a line of its own, what biases and other Jacobians give."""
    errors, beside = record["reconstructions"][prompt], []
    units = {"norm_error": "norm/norm"}
    if not is_one_entry(record):
        units = {"relative_error": "std/std"} | units
    told = [f"{'–' if errors[name] is None else format(errors[name], '.2e')} ({unit})" for name, unit in units.items()]
    if errors["model_relative_error"] is not None:
        told.append(f"{errors['model_relative_error']:.2e} (std/std, of the model's own y)")
    if has_offset(record, prompt):
        beside.append(f"offset {percent(errors['offset_share'])} of y")
    if errors["ordinary_relative_error"] is not None:
        beside.append(f"with ordinary Jacobians {errors['ordinary_relative_error']:.3g}")
    return [" · ".join(parts) for parts in (told, beside) if parts]


def _noise_floor(tokens: list[Record]) -> str:
    """Return the floors of all tokens, c ε σ_1 √passes each; empty where none has one."""
    floors = [f"{floor:.1e}" for floor in sorted(token["floor"] for token in tokens) if floor]
    between = " to ".join(dict.fromkeys((*floors[:1], *floors[-1:])))
    return between and f"{between}: claims are about values above it"


def _closing_lines(record: Record) -> list[str]:
    work = record["work"]
    counted = [
        f"{work['row_sweeps']:,.0f} row-sweeps",
        f"{100 * work['row_sweeps'] / work['dense_row_sweeps']:.0f} % of dense ({work['dense_row_sweeps']:,.0f})",
        f"{work['columns']:,} columns",
        f"{work['passes']:,} passes",
        work["method"],
    ]
    times = [f"{name} {seconds:.2f} s" for name, seconds in record["times"].items()]
    return [
        "",
        _labelled("work", " · ".join(counted)),
        _labelled("", fit(str(work["why"]), _WIDTH - _LABEL).rstrip()),
        _labelled("time", " · ".join(times)),
    ]

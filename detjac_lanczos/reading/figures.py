"""Figures of a run: spectra, reconstruction, contributions. They need matplotlib (extra ``report``)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.reading.record_values import (
    ESTIMATE,
    Record,
    estimate_of,
    has_offset,
    percent,
    scientific,
    shown_values,
    singular_values,
    switched_off,
    tokens_of,
    why_no_values,
)
from detjac_lanczos.reading.sheet import INK, MUTED, add_title, empty_sheet, house_style, short_name
from detjac_lanczos.reading.target_words import target_name
from detjac_lanczos.solvers.options import is_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _PALE, _ORANGE = "#1f5fa8", "#c9dcf2", "#c2681c"
_FIRST, _LAST = "#123a6b", "#7fbccf"
_MEASURED: Any = {"linestyle": "-", "marker": "o", "markersize": 3.5, "linewidth": 1.3, "zorder": 3}
_SURVEYED: Any = _MEASURED | {
    "zorder": 2,
    "linestyle": (0, (4, 2)),
    "linewidth": 0.9,
    "markerfacecolor": "white",
    "markeredgewidth": 0.9,
    "markevery": slice(1, None),
}
_ABOUT: Any = {"linestyle": "", "marker": "D", "markersize": 3.8, "markeredgewidth": 0}
_UNMEASURED = "No reconstruction: y is the altered network's own, which no pass of the model gives."
_LABELLED_LINES = 16
_LABELLED_BARS = 80


def plot_spectra(record: Record, prompt: int = 0) -> Figure:
    """Draw the singular values of every token of a prompt on a log scale, from dark (first token) to light (last).

    Of a token that a survey left as an estimate, a diamond is what σ_1 is about and rings are lower bounds. Where there
    are no values above 0, a sentence says so.

    Parameters
    ----------
    record : dict
        ``Run.record``.
    prompt : int
        Which prompt of the run.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DetjacError
        If matplotlib is not installed.
    InputError
        If ``record`` is no record of a run, or has no such prompt.
    """
    _check_prompt(record, prompt)
    tokens = [token for token in tokens_of(record, prompt) if singular_values(token)]
    if not any(value > 0 for token in tokens for value in shown_values(token)):
        return _sentence(why_no_values(record, prompt), record, prompt)
    figure, axes = empty_sheet(6.4, 4.0)
    with house_style():
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

        shades = LinearSegmentedColormap.from_list("tokens", [_FIRST, _LAST])
        for order, token in enumerate(tokens):
            values, style = shown_values(token), _SURVEYED if token["status"] == ESTIMATE else _MEASURED
            shade = shades(order / max(1, len(tokens) - 1))
            axes.plot(range(1, len(values) + 1), values, color=shade, **style)
            if style is _SURVEYED:
                axes.plot([1], values[:1], color=shade, **_ABOUT)
        axes.set_yscale("log")
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_tick_params(which="both", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="index j", ylabel="singular value $\\sigma_j$")
        if len(tokens) <= _LABELLED_LINES:
            _label_ends(axes, tokens)
        if any(token["status"] == ESTIMATE for token in tokens):
            _survey_legend(axes, tokens)
        add_title(figure, record, prompt)
    return figure


def plot_reconstruction(record: Record, vectors: Mapping[str, Tensor], prompt: int = 0) -> Figure:
    """Draw Σ J_i x_i + r of the detached Jacobians, and Σ J_i x_i of the ordinary ones, against the model's own y.

    Of an altered network, whose y no pass of the model gives, a sentence says so.

    Parameters
    ----------
    record : dict
        ``Run.record``.
    vectors : mapping of str to Tensor
        ``Run.vectors``.
    prompt : int
        Which prompt of the run.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DetjacError
        If matplotlib is not installed.
    InputError
        If ``record`` is no record of a run, or has no such prompt, or ``vectors`` are not a run's.

    References
    ----------
    J. Golden, "Large Language Models are Locally Linear Mappings", 2025: the detached sum lies on the diagonal.
    """
    _check_prompt(record, prompt)
    if not isinstance(vectors, Mapping) or f"y.{prompt}" not in vectors:
        raise InputError(f"figures are drawn from a run's vectors; got a {type(vectors).__name__}: give run.vectors")
    if switched_off(record):
        return _sentence(_UNMEASURED, record, prompt)
    errors = record["reconstructions"][prompt]
    truth = vectors[f"y.{prompt}"].double().cpu().numpy()
    figure, axes = empty_sheet(4.6, 4.6)
    with house_style():
        # Past the ends by a share of their size: of nearly equal entries, ticks still differ in a few digits.
        past = 0.01 * abs(truth).max()
        ends = [truth.min() - past, truth.max() + past]
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        if errors["ordinary_relative_error"] is not None:
            ordinary = vectors[f"reconstruction.ordinary.{prompt}"].double().cpu().numpy()
            without = " without r" if has_offset(record, prompt) else ""
            label = f"ordinary Jacobians{without}, error {errors['ordinary_relative_error']:.2g}"
            axes.plot(truth, ordinary, "x", color=_ORANGE, markersize=3.5, markeredgewidth=0.7, label=label)
        detached = vectors[f"reconstruction.detached.{prompt}"].double().cpu().numpy()
        label = f"detached Jacobians, error {scientific(errors['relative_error'])}"
        axes.plot(truth, detached, "o", color=_BLUE, markersize=3.2, markeredgewidth=0, label=label)
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid()
        axes.set(xlabel=f"{target_name(record)}, entry of y", ylabel=estimate_of(record, prompt))
        axes.legend(frameon=False, loc="upper left", fontsize=8)
        add_title(figure, record, prompt)
    return figure


def plot_contributions(record: Record, prompt: int = 0) -> Figure:
    """Draw ‖J_i x_i‖ / ‖y‖ of every token, and the length of the part that its leading triplets reproduce.

    Where it is known of none, a sentence says so.

    Parameters
    ----------
    record : dict
        ``Run.record``.
    prompt : int
        Which prompt of the run.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    DetjacError
        If matplotlib is not installed.
    InputError
        If ``record`` is no record of a run, or has no such prompt.
    """
    _check_prompt(record, prompt)
    tokens = [token for token in tokens_of(record, prompt) if token["contribution"]]
    if not tokens:
        unread = "J x was measured of no token." if tokens_of(record, prompt) else why_no_values(record, prompt)
        return _sentence(unread, record, prompt)
    figure, axes = empty_sheet(6.4, min(14.0, 1.2 + 0.24 * max(3, len(tokens))))
    with house_style():
        shares = [token["contribution"]["share"] for token in tokens]
        kept = [
            share * math.sqrt(max(0.0, token["contribution"]["captured"]))
            for share, token in zip(shares, tokens, strict=True)
        ]
        rows = range(len(tokens))
        axes.barh(rows, shares, height=0.72, color=_PALE, label="J x")
        axes.barh(rows, kept, height=0.72, color=_BLUE, label="its part in these triplets")
        every = max(1, math.ceil(len(tokens) / _LABELLED_BARS))
        axes.set_yticks(
            rows[::every],
            labels=[f"{short_name(token)}  {token['index']}" for token in tokens[::every]],
            parse_math=False,
        )
        if len(tokens) <= _LABELLED_BARS:
            for row, share in enumerate(shares):
                axes.annotate(percent(share), (share, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12, y=0.02)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set(xlabel=f"length relative to the {target_name(record)}, $\\|J x\\| / \\|y\\|$")
        axes.legend(frameon=False, loc="best", fontsize=8)
        add_title(figure, record, prompt)
    return figure


def save_figures(record: Record, vectors: Mapping[str, Tensor], folder: str | os.PathLike[str]) -> list[Path]:
    """Draw every figure of every prompt as PNG and SVG into a folder; neither is made where matplotlib is missing.

    Parameters
    ----------
    record, vectors
        As in `plot_reconstruction`.
    folder : path
        Made where it is missing.

    Returns
    -------
    list of Path
        "spectra.png", "reconstruction.svg" and so on; "-1" and up after the name for the second prompt and later.

    Raises
    ------
    InputError
        If ``record`` is no record of a run, or ``vectors`` are not a run's.
    """
    _check_prompt(record, 0)
    if find_spec("matplotlib") is None:
        return []
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for prompt in range(len(record["prompts"])):
        drawn = {"spectra": plot_spectra(record, prompt), "contributions": plot_contributions(record, prompt)}
        if not switched_off(record):  # an altered network's y has nothing to be held against
            drawn["reconstruction"] = plot_reconstruction(record, vectors, prompt)
        for name, figure in drawn.items():
            for kind, metadata in (("png", {}), ("svg", {"Date": None})):
                path = place / f"{name}{f'-{prompt}' if prompt else ''}.{kind}"
                with house_style():
                    figure.savefig(path, metadata=metadata)
                written.append(path)
    return written


def _sentence(words: str, record: Record, prompt: int) -> Figure:
    """Return a figure that says, in the place of axes, what there is to say of a prompt."""
    figure, axes = empty_sheet(6.4, 1.0)
    with house_style():
        axes.set_axis_off()
        axes.text(0.02, 0.5, words, transform=figure.transFigure, va="center")
        add_title(figure, record, prompt)
    return figure


def _check_prompt(record: Record, prompt: object) -> None:
    if not isinstance(record, Mapping) or "prompts" not in record:
        raise InputError(f"figures are drawn from a run's record; got a {type(record).__name__}: give run.record")
    prompts = len(record["prompts"])
    if not is_whole(prompt) or not 0 <= prompt < prompts:
        raise InputError(f"prompt {prompt!r} does not exist; the run has prompts 0..{prompts - 1}")


def _survey_legend(axes: Axes, tokens: list[Record]) -> None:
    """Say which of the marks that are drawn are estimates, bounds and values."""
    from matplotlib.lines import Line2D

    polished = any(token["status"] != ESTIMATE for token in tokens)
    bounds = any(len(singular_values(token)) > 1 for token in tokens if token["status"] == ESTIMATE)
    told = {
        "polished": _MEASURED if polished else None,
        "estimates of $\\sigma_1$ (surveyed)": _ABOUT,
        "lower bounds (surveyed)": _SURVEYED if bounds else None,
    }
    marks = [Line2D([], [], color=MUTED, label=label, **style) for label, style in told.items() if style]
    axes.legend(handles=marks, frameon=False, loc="best", fontsize=8)


def _label_ends(axes: Axes, tokens: list[Record]) -> None:
    """Name each line at its right end, labels moved apart on the log scale where they would touch."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    gap, last = 0.042 * (high - low), -math.inf
    for token in sorted(tokens, key=lambda token: shown_values(token)[-1]):
        values = shown_values(token)
        end = math.log10(values[-1]) if values[-1] > 0 else low
        last = max(end, last + gap)
        name = f"{token['index']}  {short_name(token)}"
        axes.annotate(
            name,
            (len(values), 10**last),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            parse_math=False,
            annotation_clip=False,
        )

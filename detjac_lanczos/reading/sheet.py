"""The sheet that every figure is drawn on: its style, its title, and names of tokens that fonts can draw."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from detjac_lanczos.errors import DetjacError
from detjac_lanczos.reading.fonts import drawable, installed_fonts
from detjac_lanczos.reading.record_values import Record, model_name, prompt_text, switched_off
from detjac_lanczos.reading.visible import columns, fit, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, _GRID = "#1d1c19", "#67635a", "#e3dfd5"
NO_MATPLOTLIB = "figures need matplotlib; install it with: pip install 'detjac-lanczos[report]'"
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "detjac",
    "savefig.dpi": 200,
}
_LONGEST_TOKEN = 22
_LTR = "\u200e"  # keeps an index beside an Arabic or Hebrew token where it was written


def house_style() -> Any:
    """Return a context in which matplotlib draws in the style of all figures, whatever the caller has set."""
    from matplotlib import style

    return style.context(_STYLE | {"font.family": list(installed_fonts())}, after_reset=True)


def empty_sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of so many inches that belongs to no window and no global list."""
    if find_spec("matplotlib") is None:
        raise DetjacError(NO_MATPLOTLIB)
    with house_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        return figure, figure.subplots()


def add_title(figure: Figure, record: Record, prompt: int) -> None:
    """Head a figure with its prompt and the model, cut to its width, of which a third at least is the prompt's."""
    width, text = int(12 * figure.get_figwidth()), drawable(prompt_text(record, prompt))
    before, after = f"{_LTR}  (", ")"
    room = width - min(columns(text), width // 3) - columns(before + after)
    model = f"{before}{_model_within(record, room)}{after}"
    figure.suptitle(
        fit(text, width - columns(model)).rstrip() + model,
        x=0.02,
        ha="left",
        fontsize=10,
        parse_math=False,
    )


def _model_within(record: Record, room: int) -> str:
    """Return the model with the parts it was without; where they take more room, with their number."""
    name, off = model_name(record), switched_off(record)
    if columns(name) <= room:
        return name
    without = f" without {len(off)} part{'s' if len(off) > 1 else ''}" if off else ""
    return fit(str(record["model"]), room - columns(without)).rstrip() + without


def short_name(token: Record) -> str:
    """Return a token as fonts can draw it, cut to a label's length."""
    return _LTR + fit(drawable(visible(token["token"])), _LONGEST_TOKEN).rstrip() + _LTR

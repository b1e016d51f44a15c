"""The page of a run: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from torch import Tensor

from detjac_lanczos.reading.page.heading import heading
from detjac_lanczos.reading.page.markup import text
from detjac_lanczos.reading.page.sections import about, prompt_section
from detjac_lanczos.reading.record_values import Record, model_name, text_read
from detjac_lanczos.reading.visible import shortened

__all__ = ["render_page"]

# Even if an escape were missed, nothing of a prompt or a vocabulary could run or reach the network.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_TITLE = 120


def render_page(record: Record, vectors: Mapping[str, Tensor]) -> str:
    """Return the report of a run as one self-contained HTML document.

    Parameters
    ----------
    record : mapping
        The record of a run (``run.json``).
    vectors : mapping of str to Tensor
        Its ``vectors.safetensors``: "y.{prompt}", "reconstruction.detached.{prompt}" and, where there is one,
        "reconstruction.ordinary.{prompt}", each (d_out,), are drawn.

    Returns
    -------
    str
        Encode as UTF-8. Every token is escaped; the page holds no script.
    """
    style = files(__package__).joinpath("style.css").read_text("utf-8")
    prompts = "".join(prompt_section(record, vectors, prompt) for prompt in range(len(record["prompts"])))
    version = record["versions"]["detjac_lanczos"]
    title = shortened(text_read(record, 0), _TITLE)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)} · detached Jacobians of {text(model_name(record))}</title>"
        f"<style>{style}</style></head><body>{heading(record)}<main>{prompts}{about(record)}</main>"
        f"<footer>Written by detjac_lanczos {text(version)}. This page is one file: it needs no network and runs no "
        "script.</footer></body></html>\n"
    )

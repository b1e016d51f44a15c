"""The search of a run, or its survey: estimates for every token from shared rows, claims for those polished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs.search_options import SHARED_BASIS, Polish, SearchOptions
from detjac_lanczos.solvers import Missed, Status, SVDResult, Work, flagged, polish, svd_batch, worst
from detjac_lanczos.solvers.auto import TINY
from detjac_lanczos.solvers.journal import digest

_LONG = 24
"""Tokens from which on matrices are written out for want of anything cheaper that certifies."""


def search_batch(
    batch: JacobianBatch,
    k: int | None,
    wanted: Polish,
    search: SearchOptions,
    choices: Mapping[str, Any],
    checkpoint: Path | None,
) -> list[SVDResult]:
    """Find the triplets of all tokens as the options say, by a survey or with a certificate for each.

    Parameters
    ----------
    batch : JacobianBatch
    k, wanted, search
        What `check_search` has passed.
    choices : mapping
        The solver's own of an earlier search, to be made again; empty for new ones.
    checkpoint : Path or None
        As in `svd_batch`; each polish has a folder in it.

    Returns
    -------
    list of SVDResult
        One for each operator.
    """
    if search["method"] == SHARED_BASIS:
        return _survey(batch, k, wanted, search, choices, checkpoint)
    results = svd_batch(batch, k, **search, choices=dict(choices), checkpoint=checkpoint)
    return name_the_survey(results) if search["method"] == "auto" and k is not None else results


def name_the_survey(results: Sequence[SVDResult]) -> list[SVDResult]:
    """Say, where "auto" wrote many matrices out, that estimates cost a third; it never chooses them by itself."""
    first = results[0]
    if first.method != "dense" or len(results) < _LONG or len(first.U) <= TINY:
        return list(results)
    return [replace(r, why=f"{r.why}; method {SHARED_BASIS!r} gives estimates for a third of that") for r in results]


def estimates_of(results: Sequence[SVDResult]) -> dict[int, Missed]:
    """Return what is known of those tokens that were surveyed and not polished."""
    return {
        index: result.missed
        for index, result in enumerate(results)
        if result.status is Status.ESTIMATE and result.missed is not None
    }


def _survey(
    batch: JacobianBatch,
    k: int | None,
    wanted: Polish,
    search: SearchOptions,
    choices: Mapping[str, Any],
    checkpoint: Path | None,
) -> list[SVDResult]:
    """Survey all tokens, and polish those asked for: the flagged, or so many, the worst first.

    Results of polished tokens keep what the survey had measured (``missed``); their work is that of both. The method,
    the reason and the choices are those of the survey in all of them, with what became of the polish.
    """
    estimating: SearchOptions = {**search, "certify": None, "block": None}
    surveyed = svd_batch(batch, k, **estimating, choices=dict(choices), checkpoint=checkpoint)
    chosen = _chosen(surveyed, wanted)
    if not chosen:
        return surveyed
    results = polish(
        batch,
        surveyed,
        chosen,
        tol=search["tol"],
        certify=search["certify"],
        delta=search["delta"],
        seed=search["seed"],
        block=search["block"],
        callback=search["callback"],
        choices=choices.get("polish"),
        checkpoint=None if checkpoint is None else checkpoint / "polish" / _name(surveyed, chosen),
    )
    first = results[chosen[0]]
    made = {**surveyed[0].choices, "polish": first.choices}
    why = f"{surveyed[0].why}; {len(chosen)} of {len(batch)} tokens polished by {first.method} ({first.why})"
    for index in chosen:
        work = _sum(surveyed[index].work, results[index].work)
        results[index] = replace(results[index], work=work, missed=surveyed[index].missed)
    return [replace(result, method=SHARED_BASIS, why=why, choices=made) for result in results]


def _chosen(surveyed: Sequence[SVDResult], wanted: Polish) -> list[int]:
    if wanted is None:
        return []
    return flagged(surveyed) if isinstance(wanted, str) else sorted(worst(surveyed, wanted))


def _name(surveyed: Sequence[SVDResult], chosen: Sequence[int]) -> str:
    """Return a name of what a polish starts from, so that other tokens, or vectors rounded otherwise, begin anew."""
    return digest(str(chosen), *(surveyed[index].V for index in chosen))[:16]


def _sum(survey: Work, own: Work) -> Work:
    return Work(**{part.name: getattr(survey, part.name) + getattr(own, part.name) for part in fields(Work)})

"""A survey in a run: estimates for every token from shared rows, and claims for those that are polished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.solvers import Missed, Status, SVDResult, Work, flagged, polish, svd_batch, worst
from detjac_lanczos.solvers.auto import TINY
from detjac_lanczos.solvers.options import check_options, is_whole

SHARED_BASIS = "shared_basis"
_LONG = 24
"""Tokens from which on matrices are written out for want of anything cheaper that certifies."""
Polish = int | str | None


def check_survey(k: int | None, wanted: Polish, search: Mapping[str, Any]) -> None:
    """Raise InputError for options that no survey and no polish can honour.

    Parameters
    ----------
    k, search
        Options of the solver, ``search`` those beside k.
    wanted : int, "flagged" or None
    """
    surveyed = search["method"] == SHARED_BASIS
    if wanted is not None and not surveyed:
        raise InputError(
            f"polish goes on from a survey, and method {search['method']!r} makes none: give {SHARED_BASIS!r}"
        )
    if wanted is not None and wanted != "flagged" and (not is_whole(wanted) or wanted < 1):
        raise InputError(f"polish = {wanted!r} chooses no tokens: give 'flagged', a number of them, or None")
    check_options(k=k, **(dict(search) if wanted is None else {**search, "certify": None}))


def survey_batch(
    batch: JacobianBatch, k: int | None, wanted: Polish, search: Mapping[str, Any], choices: Mapping[str, Any]
) -> list[SVDResult]:
    """Survey all tokens, and polish those asked for: the flagged, or so many, the worst first.

    Results of polished tokens keep what the survey had measured (``missed``); their work is that of both. The method,
    the reason and the choices are those of the survey in all of them, with what became of the polish.
    """
    surveyed = svd_batch(batch, k, **{**search, "certify": None}, choices=dict(choices))
    chosen = _chosen(surveyed, wanted)
    if not chosen:
        return surveyed
    shared = {name: search[name] for name in ("tol", "certify", "delta", "seed", "block", "callback")}
    results = polish(batch, surveyed, chosen, **shared, choices=choices.get("polish"))
    first = results[chosen[0]]
    made = {**surveyed[0].choices, "polish": first.choices}
    why = f"{surveyed[0].why}; {len(chosen)} of {len(batch)} tokens polished by {first.method} ({first.why})"
    for index in chosen:
        work = _sum(surveyed[index].work, results[index].work)
        results[index] = replace(results[index], work=work, missed=surveyed[index].missed)
    return [replace(result, method=SHARED_BASIS, why=why, choices=made) for result in results]


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


def _chosen(surveyed: Sequence[SVDResult], wanted: Polish) -> list[int]:
    if wanted is None:
        return []
    return flagged(surveyed) if isinstance(wanted, str) else sorted(worst(surveyed, wanted))


def _sum(survey: Work, own: Work) -> Work:
    return Work(**{part.name: getattr(survey, part.name) + getattr(own, part.name) for part in fields(Work)})

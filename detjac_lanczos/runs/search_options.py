"""Options of a search, one list of them: what `analyze` hands on to the solver, and what a record keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.options import Callback, check_options, is_whole

SHARED_BASIS = "shared_basis"
Polish = int | str | None
"""Tokens of a survey to certify: "flagged", a number of them, or none."""


class SearchOptions(TypedDict):
    """Options of `svd_batch` that a run hands on as they are; k and the polish stand beside them."""

    threshold: float | None
    energy: float | None
    tol: float
    method: str
    block: int | None
    max_products: int | None
    seed: int
    certify: str | None
    delta: float
    callback: Callback | None


def check_search(k: int | None, polish: Polish, search: SearchOptions) -> None:
    """Check options before a model is loaded.

    Raises
    ------
    InputError
        If no solve, no survey or no polish can honour them.
    """
    method = search["method"]
    if polish is not None and method != SHARED_BASIS:
        raise InputError(f"polish goes on from a survey, and method {method!r} makes none: give {SHARED_BASIS!r}")
    if polish is not None and polish != "flagged" and (not is_whole(polish) or polish < 1):
        raise InputError(f"polish = {polish!r} chooses no tokens: give 'flagged', a number of them, or None")
    if polish is not None:
        search = {**search, "certify": None}  # the survey claims nothing, the polish may claim all
    check_options(k=k, **search)


def search_record(k: int | None, polish: Polish, search: SearchOptions) -> dict[str, Any]:
    """Return checked options as a record keeps them: plain data, all but the callback."""
    return {
        "k": _whole(k),
        "threshold": _number(search["threshold"]),
        "energy": _number(search["energy"]),
        "tol": _number(search["tol"]),
        "method": search["method"],
        "polish": polish if isinstance(polish, str) else _whole(polish),
        "seed": _whole(search["seed"]),
        "certify": search["certify"],
        "delta": _number(search["delta"]),
        "block": _whole(search["block"]),
        "max_products": _whole(search["max_products"]),
    }


def search_from(options: Mapping[str, Any]) -> SearchOptions:
    """Return the options of the solver that `search_record` wrote down."""
    return SearchOptions(
        threshold=options["threshold"],
        energy=options["energy"],
        tol=options["tol"],
        method=options["method"],
        block=options["block"],
        max_products=options["max_products"],
        seed=options["seed"],
        certify=options["certify"],
        delta=options["delta"],
        callback=None,
    )


def _whole(value: int | None) -> int | None:
    return None if value is None else int(value)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)

"""Options of a search, one list of them: what `analyze` hands on to the solver, and what a record keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

import numpy as np

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.options import Callback, Certify, SearchMethod, check_options, is_whole, require_blocks

SHARED_BASIS = "shared_basis"
Polish = int | Literal["flagged"] | None
"""Tokens of a survey to certify: "flagged", a number of them, or none."""


class SearchOptions(TypedDict):
    """Options of `svd_batch` that a run hands on as they are; k and the polish stand beside them."""

    threshold: float | None
    energy: float | None
    tol: float
    method: SearchMethod
    block: int | None
    max_products: int | None
    seed: int
    certify: Certify | None
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
    if polish is None:  # which has blocks
        require_blocks(search["block"], method)


def search_record(k: int | None, polish: Polish, search: SearchOptions) -> dict[str, Any]:
    """Return checked options as a record keeps them: plain data, all but the callback."""
    given = {"k": k, "polish": polish, **search}
    return {name: _plain(value) for name, value in given.items() if name != "callback"}


def search_from(options: Mapping[str, Any]) -> SearchOptions:
    """Return the options of the solver that `search_record` wrote down."""
    recorded = {name: options[name] for name in SearchOptions.__annotations__ if name != "callback"}
    return cast(SearchOptions, recorded | {"callback": None})


def _plain(value: object) -> object:
    """Return numbers of numpy as those of Python."""
    if isinstance(value, np.floating):
        return float(value)
    return value.item() if isinstance(value, np.generic) else value

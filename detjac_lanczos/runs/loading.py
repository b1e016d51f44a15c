"""`load_run`: a run from its folder, whose record and vectors fit each other."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import RunFileError
from detjac_lanczos.runs.disk import read_run
from detjac_lanczos.runs.folder import RECORD, VECTORS
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers.attempt import MOST_CLAIMS
from detjac_lanczos.solvers.options import SMALLEST_DELTA
from detjac_lanczos.whole_file import as_path


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run that `Run.save` or ``detjac svd --out`` wrote.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Run

    Raises
    ------
    RunFileError
        If the folder is missing, foreign, truncated, damaged, or written by a newer version, or cannot be read (also as
        memory or file descriptors run out).
    """
    path = Path(os.path.expanduser(as_path(folder)))  # unlike Path's own, no error in the home of nobody
    run = Run(*read_run(path))
    try:
        fault = _mismatch(run)
    except KeyError as error:
        raise RunFileError(f"{path / VECTORS} lacks {error.args[0]}; make the run again") from None
    if fault:
        raise RunFileError(f"{path / RECORD} {fault}; make the run again")
    return run


def _mismatch(run: Run) -> str | None:
    """Return what does not fit between the record's parts and the vectors; every token has its triplets and names."""
    record, vectors = run.record, run.vectors
    prompts = len(record["prompts"])
    if not prompts or not record["tokens"] or not record["work"]["dense_row_sweeps"] > 0:
        return "lacks prompts, tokens or work"
    for name in ("token_ids", "prompt_tokens", "predictions", "reconstructions"):
        if len(record[name]) != prompts:
            return f"lacks {name} of each of its {prompts} prompts"
    for prompt, (ids, names) in enumerate(zip(record["token_ids"], record["prompt_tokens"], strict=True)):
        known = len(names) if f"embeds.{prompt}" not in vectors else 0
        if not names or not record["predictions"][prompt] or len(ids) != known:
            return f"lacks tokens or predictions of prompt {prompt}"
    for (prompt, index), times in Counter((token["prompt"], token["index"]) for token in record["tokens"]).items():
        if not 0 <= prompt < prompts or not 0 <= index < len(record["prompt_tokens"][prompt]):
            return f"has results of token {index} of prompt {prompt}, which is not there"
        if times > 1:
            return f"has results of token {index} of prompt {prompt} {times} times"
    for name, vector in vectors.items():
        if vector.is_complex():
            return f"lacks a real {name}"
    for prompt in range(prompts):
        y = vectors[f"y.{prompt}"]
        for kind in ("detached", "ordinary"):
            written = kind == "detached" or record["reconstructions"][prompt]["ordinary_relative_error"] is not None
            if written and not _is_drawn_beside(vectors[f"reconstruction.{kind}.{prompt}"], y):
                return f"lacks a finite vector reconstruction.{kind}.{prompt} of the length of y.{prompt}"
    for token in run.tokens:
        if fault := _token_mismatch(run, token):
            return f"{fault} of {token.name}"
    return None


def _is_drawn_beside(estimate: Tensor, y: Tensor) -> bool:
    """Whether a reconstruction and y are finite vectors of one length."""
    finite = bool(estimate.isfinite().all()) and bool(y.isfinite().all())
    return finite and y.ndim == 1 and len(y) > 0 and estimate.shape == y.shape


def _token_mismatch(run: Run, token: TokenResult) -> str | None:
    record = token.record
    if run.vectors[f"x.{token.prompt}.{token.index}"].ndim != 1:
        return "lacks the input"
    k = len(record["singular_values"])
    sizes = (*token.U.shape[-1:], *token.S.shape, *token.V.shape[-1:], len(record["residuals"]))
    several = k > 0 or run.record["options"]["threshold"] is not None
    dimensions = (token.U.ndim, token.S.ndim, token.V.ndim)
    sized = several and dimensions == (2, 1, 2) and all(size == k for size in sizes)
    if not sized or not all(part.dtype in (torch.float32, torch.float64) for part in (token.U, token.S, token.V)):
        return f"lacks {k} triplets"
    claim = (record["certificate"] or {}).get("completeness")
    if claim is not None and not _has_guards(token, claim, k):
        return "lacks guards, bounds or steps of the claim"
    unknown = None in record["singular_values"]
    if any(None in pair[1 if token.estimated else 0 :] for pair in record["residuals"]) and not unknown:
        return "lacks residuals"
    if (token.estimated or token.survey) and not _has_survey(run, token, k):
        return "lacks what the survey estimated, or its basis,"
    if any(len(record[side]) != (0 if unknown else k) for side in ("left", "right")):
        return f"lacks decodings for the {k} triplets"
    if (record["stable_rank"] is None) != (record["stable_rank_interval"] is None):
        return "lacks the stable rank or its interval"
    return None


def _has_survey(run: Run, token: TokenResult, k: int) -> bool:
    """Whether the estimates of a survey and its basis are there."""
    survey, basis = token.survey, run.vectors["survey.basis"]
    sized = basis.ndim == 2 and k <= basis.shape[0] <= basis.shape[1] == token.U.shape[0]
    sized = sized and basis.dtype in (torch.float32, torch.float64) and bool(basis.isfinite().all())
    return sized and survey is not None and len(survey["values"]) == len(survey["residuals"]) == k


def _has_guards(token: TokenResult, claim: dict[str, Any], k: int) -> bool:
    """Whether the guards of a claim of completeness, its bounds and its steps are there."""
    guards, count = token.guards, claim["guards"]
    there = (guards is None and count == 0) or (
        guards is not None
        and guards.U.shape == (token.U.shape[0], count)
        and guards.V.shape == (token.V.shape[0], count)
        and guards.S.shape == (count,)
    )
    sized = claim["k"] == k and len(claim["upper"]) == k + count + 1
    number, vectors = claim["number"], len(claim["steps"])
    probed = SMALLEST_DELTA <= claim["delta"] < 1 and 0 <= number < number + vectors <= MOST_CLAIMS
    return there and sized and (probed or claim["delta"] == 0)

"""What a survey estimated, estimated again from its stored basis, in shared rows: an estimate is no certificate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.record import survey_record
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers import Missed, SVDResult
from detjac_lanczos.solvers.missed import FLAG_LEVEL, largest_error
from detjac_lanczos.solvers.rounding import SAFETY, adjoint_bound, epsilon, working_dtype
from detjac_lanczos.solvers.shared_basis import MOST_PROBES, estimate_again


def survey_claims(
    run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult]
) -> tuple[list[Claim], dict[int, Missed]]:
    """Survey again, from the stored basis, those of ``tokens`` that were surveyed; ``batch`` are their operators.

    Those without triplets are left out.

    Returns
    -------
    list of Claim
    dict of int to Missed
        What was found anew of those left as estimates, by their index.
    """
    surveyed = [index for index, token in enumerate(tokens) if len(token.S) and token.survey is not None]
    if not surveyed:
        return [], {}
    basis, options = run.vectors["survey.basis"], run.record["options"]
    written = tokens[surveyed[0]].record["survey"]["probes"]
    fresh = estimate_again(
        batch.part(surveyed),
        basis,
        [tokens[i].U for i in surveyed],
        k=max(len(tokens[i].S) for i in surveyed),
        seed=options["seed"],
        probes=min(max(written, 1), MOST_PROBES),
        operators=len(run.tokens),
    )
    claims: list[Claim] = []
    estimates = {}
    for index, (result, pulled) in zip(surveyed, fresh, strict=True):
        claims += _claims(batch, tokens[index], result, pulled.cpu())
        if tokens[index].estimated and result.missed is not None:
            estimates[index] = result.missed
    return claims, estimates


def _claims(batch: JacobianBatch, token: TokenResult, fresh: SVDResult, pulled: Tensor) -> Iterator[Claim]:
    """Compare what the survey says of one token with a fresh estimate.

    A product of a unit vector may differ by c ε √d of σ_1, and what rests on all p probes by √p times as much. Where
    the token is left as an estimate, its triplets have to be those that make its values lower bounds: u in the span of
    an orthonormal basis, and Jᵀu = s v.
    """
    missed, written = fresh.missed, token.survey
    if missed is None or written is None:
        yield Claim(f"survey of {token.name}", 0.0, math.inf, 0.0)
        return
    d_out = missed.basis.shape[1]
    eps = epsilon(working_dtype(batch.dtype))
    product = adjoint_bound(epsilon(batch.dtype), max(batch.shapes[0])) * missed.sigma_1[1]
    allowed = product * math.sqrt(missed.probes)
    yield Claim(f"difference in the estimates of {token.name}", 0.0, _apart(written, missed), allowed)
    wrong = written["flagged"] != (largest_error(written["values"][0], *written["sigma_1"]) > FLAG_LEVEL)
    wrong |= any(written.get(name) != getattr(missed, name) for name in ("probes", "confidence", "operators"))
    yield Claim(f"contradictions in the survey of {token.name}", 0.0, float(wrong), 0.0)
    if not token.estimated:
        return
    S = token.S.double()
    apart = _gap(S, fresh.S.double().cpu())
    yield Claim(f"difference in the lower bounds of {token.name}", 0.0, apart, product)
    recorded = torch.tensor(token.record["singular_values"], dtype=torch.float64, device="cpu")
    yield Claim(f"difference between record and vectors in the values of {token.name}", 0.0, _gap(recorded, S), 0.0)
    U, basis = token.U.double(), missed.basis.double().cpu()
    loss = max(
        float((block.T @ block - torch.eye(len(S), device=block.device)).norm()) for block in (U, token.V.double())
    )
    loss = max(loss, float((U - basis.T @ (basis @ U)).norm()))
    yield Claim(f"loss of orthonormality of {token.name}", 0.0, loss, SAFETY * eps * math.sqrt(d_out))
    residuals = (pulled - token.V.double() * S).norm(dim=0).tolist()
    for j, (pair, measured) in enumerate(zip(token.residuals, residuals, strict=True)):
        claimed = math.nan if pair[0] is not None or pair[1] is None else pair[1]
        allowed = claimed + product
        yield Claim(f"residual ρ_L of triplet {j + 1} of {token.name}", claimed, measured, allowed, claimed - product)


def _apart(written: dict[str, Any], fresh: Missed) -> float:
    """Return the largest difference between numbers, all in the operator's own unit."""
    again = survey_record(fresh)
    scales = {"share": fresh.frobenius, "frobenius": 1.0, "values": 1.0, "residuals": 1.0, "sigma_1": 1.0}
    worst = 0.0
    for name, scale in scales.items():
        one, other = (torch.tensor(numbers[name], dtype=torch.float64, device="cpu") for numbers in (written, again))
        worst = max(worst, scale * _gap(one, other))
    return worst


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else math.inf

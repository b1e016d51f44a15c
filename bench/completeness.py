"""What completeness costs on the real Jacobians: bounds of σ_9 by products, and claims that are index-exact."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import detjac_lanczos as dl
from bench.real_jacobians import written_out
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.probe import Deflation, Probe

K, DELTA, TOL = 8, 1e-6, 1e-3
PRODUCTS = (16, 24)


def completeness(model: Any, ids: list[int], width: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    """Return, per token, τ / σ_9 after so many products without guards, and what ``certify="complete"`` comes to."""
    batch = dl.detach((model, None), input_ids=ids).jacobians()
    truth = [matrix.double() for matrix in written_out(batch)]
    options = {"tol": TOL, "method": "lanczos", "block": width, "seed": seed}
    results = dl.svd_batch(batch, K, **options, certify="complete", delta=DELTA)
    return [_row(index, J, result, seed) for index, (J, result) in enumerate(zip(truth, results, strict=True))]


def _row(index: int, J: Tensor, result: Any, seed: int) -> dict[str, Any]:
    exact = torch.linalg.svdvals(J)
    claim = result.certificate.completeness
    search = result.work.products - result.work.probe_products
    upper = torch.tensor(claim.upper, dtype=torch.float64)
    return {
        "token": index,
        "bound": dict(zip(map(str, PRODUCTS), _bounds(J, result, float(exact[K]), seed), strict=True)),
        "complete": claim.complete,
        "guards": claim.guards,
        "search products": search,
        "probe products": result.work.probe_products,
        "share": result.work.probe_products / search,
        "claim holds": bool((exact[: len(upper)] <= upper).all()),
        "line": result.certificate.line,
    }


def _bounds(J: Tensor, result: Any, following: float, seed: int) -> list[float]:
    """Return τ / σ_9 of one probe in what the k triplets alone leave."""
    U, V, values = result.U.double().T, result.V.double().T, np.asarray(result.S.double())
    deflation = Deflation.of(values, U, V, V @ J.T, U @ J)
    probe = Probe(deflation, (J.shape[0], J.shape[1]), eps=torch.finfo(result.U.dtype).eps, seed=seed, number=0)
    ratios = []
    for made in range(1, max(PRODUCTS) + 1):
        assert probe.row is not None
        probe.absorb(probe.row @ (J.T if probe.direction is Direction.FORWARD else J))
        if made in PRODUCTS:
            ratios.append(probe.tau(DELTA) / following)
    return ratios

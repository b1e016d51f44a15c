"""The triplets of a run, their certificates and the shares of ‖J‖_F² that they hold, measured again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.reading.record_values import SUCCESSFUL
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers.batch import Subset
from detjac_lanczos.solvers.certificate import Certificate
from detjac_lanczos.solvers.energy import EnergySketch
from detjac_lanczos.solvers.measure import Measurement, measure_triplets
from detjac_lanczos.solvers.rounding import SAFETY, adjoint_bound, epsilon, working_dtype

_LARGEST = 2.0
"""Entry of a vector: that of a unit vector, and room for rounding. Larger ones may have no finite squares."""

_CONFIDENCE = 1 - 1e-6
"""Of an interval of the share."""


def finite_claim(token: TokenResult) -> Claim:
    """Triplets and guards are numbers that can be those of unit vectors and singular values.

    Unless the record itself says that none were found.
    """
    guards = token.guards
    vectors = (token.U, token.V, *(() if guards is None else (guards.U, guards.V)))
    values = (token.S, *(() if guards is None else (guards.S,)))
    count = sum(int((~torch.isfinite(part)).sum()) for part in (*vectors, *values))
    count += sum(int((part.abs() > _LARGEST).sum()) for part in vectors) + int((token.S < 0).sum())
    allowed = math.inf if None in token.record["singular_values"] else 0.0
    what = f"numbers of {token.name} that are not finite, values below 0, and entries above {_LARGEST:g}"
    return Claim(what, 0.0, float(count), allowed)


def triplet_claims(run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult], passes: int) -> Iterator[Claim]:
    """Send the triplets of ``tokens`` through their operators, one pass each way; estimates claim none of it."""
    certified = [index for index, token in enumerate(tokens) if len(token.S) and not token.estimated]
    if not certified:
        return
    operators = batch.part(certified)
    part = [tokens[index] for index in certified]
    vectors = ([getattr(token, name) for token in part] for name in "USV")
    sweeps = Subset(operators, range(len(part)))
    fresh = measure_triplets(sweeps, *vectors, tol=run.record["options"]["tol"], passes=passes)
    for token, found in zip(part, fresh, strict=True):
        yield from _of_token(token, found, epsilon(working_dtype(batch.dtype)))
    yield from _of_energy(run, operators, part)


def _of_token(token: TokenResult, found: Measurement, eps: float) -> Iterator[Claim]:
    record, name = token.record, token.name
    fresh, residuals = found.certificate, found.residuals
    slack, certificate = found.rounding, token.certificate
    for j, (claimed, measured) in enumerate(zip(token.residuals, residuals.tolist(), strict=True)):
        largest = max(part for part in claimed if part is not None)
        yield Claim(f"residual of triplet {j + 1} of {name}", largest, max(measured), largest + slack)
    recorded = torch.tensor(token.residuals, dtype=torch.float64, device="cpu")
    yield Claim(f"difference in the residuals of {name}", 0.0, float((recorded - residuals).abs().max()), slack)
    written = torch.tensor(record["singular_values"], dtype=torch.float64, device="cpu")
    apart = float((written - token.S.double()).abs().max())
    yield Claim(f"difference between record and vectors in the values of {name}", 0.0, apart, 0.0)
    wanted = len(token.S) if token.status in SUCCESSFUL else 0
    if certificate is not None:
        wanted = max(wanted, certificate.claimed)
        yield from _of_certificate(certificate, found, name, eps, token.S.double())
        different = float(certificate.line != record["certificate"]["line"])
        yield Claim(f"difference between the certificate of {name} and its line", 0.0, different, 0.0)
    met = residuals.amax(dim=1) <= fresh.tol * token.S.double() + slack
    yield Claim(f"triplets of {name} short of those claimed", 0.0, max(0.0, float(wanted - met.sum())), 0.0)


def _of_certificate(claimed: Certificate, found: Measurement, name: str, eps: float, values: Tensor) -> Iterator[Claim]:
    """Compare every number of a certificate, either way: none may say less, or more, than was measured."""
    fresh, root, smallest = found.certificate, math.sqrt(len(values)), float(values.min())
    slack = SAFETY * eps * root
    for side, was, measured in zip(("left", "right"), claimed.orthonormality, fresh.orthonormality, strict=True):
        yield _either_way(f"loss of orthonormality, {side} vectors of {name}", was, measured, slack)
    unclear = float(_may_be_claimed_or_not(found, values).sum())
    yield _either_way(f"number of triplets claimed of {name}", claimed.claimed, fresh.claimed, unclear)
    off, allowed = root * found.rounding, found.rounding / smallest if smallest > 0 else math.inf
    block, largest = f"block residual of {name}", f"certified residual of {name}"
    if fresh.claimed == claimed.claimed:
        yield _either_way(block, claimed.e_k, fresh.e_k, off)
        yield _either_way(largest, claimed.residual, fresh.residual, allowed)
    else:
        yield Claim(block, claimed.e_k, _least_of(found.residuals, claimed.claimed), claimed.e_k + off)
        least = _least_of(found.relative, claimed.claimed)
        yield Claim(largest, claimed.residual, least, claimed.residual + allowed)
    scale = fresh.sigma_1 or 1.0
    allowed = slack + root * found.rounding / scale
    yield _either_way(f"adjoint defect of {name}", claimed.adjoint_defect, fresh.adjoint_defect, allowed)
    wrong = _wrong_clusters(claimed, found, values)
    yield Claim(f"differences in the clusters of {name}", 0.0, float(wrong), 0.0)
    yield Claim(f"difference of the certified tolerance of {name}", 0.0, abs(claimed.tol - fresh.tol), 0.0)


def _either_way(what: str, claimed: float, measured: float, slack: float) -> Claim:
    return Claim(what, claimed, measured, claimed + slack, claimed - slack)


def _may_be_claimed_or_not(found: Measurement, values: Tensor) -> Tensor:
    """Return which triplets meet the tolerance, or are zeros, by no more than rounding: (k,)."""
    beyond = found.residuals.amax(dim=1) - found.certificate.tol * values
    return (beyond.abs() <= found.rounding) | (values <= found.rounding)


def _least_of(residuals: Tensor, count: int) -> float:
    """Return what no choice of so many triplets can have as its largest residual, or less: (k, 2) to a number."""
    return float(residuals.amax(dim=1).sort().values[:count].max()) if count > 0 else 0.0


def _wrong_clusters(claimed: Certificate, found: Measurement, values: Tensor) -> int:
    """Count neighbours that are clearly in one cluster or clearly not, and residuals, that are written otherwise."""
    fresh, worst = found.certificate, found.residuals.amax(dim=1)
    together = {(j, j + 1) for cluster in claimed.clusters for j in cluster.indices[:-1]}
    joined = all(tuple(range(c.indices[0], c.indices[-1] + 1)) == c.indices for c in claimed.clusters if c.indices)
    wrong = int(not joined) + sum(not 0 <= j < len(values) - 1 for j, _ in together)
    for j in range(len(values) - 1):
        excess = float(values[j] - values[j + 1] - worst[j] - worst[j + 1])
        if abs(excess) > 4 * found.rounding:
            wrong += ((j, j + 1) in together) != (excess <= 0)
    measured = {cluster.indices: cluster.residual for cluster in fresh.clusters}
    for cluster in claimed.clusters:
        again = measured.get(cluster.indices, cluster.residual)
        wrong += abs(again - cluster.residual) > math.sqrt(len(values)) * found.rounding
    return wrong


def _of_energy(run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult]) -> Iterator[Claim]:
    """Compare each recorded interval of the share with a fresh one.

    The fresh interval rests on the triplets alone, the recorded one on all that the search knew, or on the matrix. It
    is made so wide that it misses the share in one of a million runs: the two must meet.
    """
    told = [token.record["energy"] for token in tokens]
    if not any(told):
        return
    sketch = EnergySketch(tokens[0].U.T.to(batch.device, batch.dtype), run.record["options"]["seed"])
    images = batch.rmatmat_shared(sketch.rows.T)
    pulled = batch.rmatmat([(index, token.U.to(batch.device, batch.dtype)) for index, token in enumerate(tokens)])
    slack = adjoint_bound(epsilon(batch.dtype), max(batch.shapes[0]))
    for token, written, image, products in zip(tokens, told, images, pulled, strict=True):
        if written is None:
            continue
        sketch.absorb(image.T)
        first = math.inf if token.status == "budget" else float(token.S[0])
        low, high = sketch.total(token.U.T.to(image), products.T, first, _CONFIDENCE)
        held = float(token.S.double().square().sum())
        least, most = (held / high, held / low) if low > 0.0 else (1.0, 1.0)
        asked = (run.record["options"]["energy"] or 0.0) if token.status == "converged" else 0.0
        inside = max(asked - written[0], written[0] - written[1], written[1] - 1.0)
        apart = max(written[0] - most, least - written[1], inside, 0.0)
        yield Claim(f"difference in the share of the energy of {token.name}", 0.0, apart, slack)

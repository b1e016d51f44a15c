"""The shares of ‖J‖_F² that a run claims, measured again with the same random cotangents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers.energy import EnergySketch
from detjac_lanczos.solvers.rounding import adjoint_bound, epsilon

_CONFIDENCE = 1 - 1e-6


def energy_claims(run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult]) -> Iterator[Claim]:
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

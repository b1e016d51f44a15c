"""What a run says of each prompt's output: its value, what was rebuilt of it, and how far off that is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.operators import DetachedNetwork, JacobianBatch
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.readings import rebuild_outputs
from detjac_lanczos.runs.record import as_plain, reconstruction_record
from detjac_lanczos.runs.run import Run
from detjac_lanczos.solvers.rounding import LARGEST_ADJOINT_BOUND, SAFETY, epsilon


def output_claims(
    run: Run, network: DetachedNetwork, batch: JacobianBatch, places: Mapping[str, Any]
) -> Iterator[Claim]:
    """Rebuild every prompt's output again; values of the forward pass may differ by c ε √d of their length, or a tenth.

    From an output of zero anything but zero is infinitely far (None). What the ordinary Jacobians give may be much
    longer than the output: its error may differ by as much more.
    """
    for prompt, reading in enumerate(rebuild_outputs(network, batch, **places)):
        fresh = reading.detached
        slack = _slack(network.dtype, len(fresh.y))
        yield _same(f"output of prompt {prompt}", run.vectors[f"y.{prompt}"], fresh.y, slack)
        estimate = run.vectors[f"reconstruction.detached.{prompt}"]
        yield _same(f"reconstruction of prompt {prompt}", estimate, fresh.estimate, slack)
        written = run.record["reconstructions"][prompt]
        again = as_plain(reconstruction_record(network, batch, prompt, reading))
        for name in ("relative_error", "norm_error", "offset_share", "model_relative_error"):
            yield _number(f"{name.replace('_', ' ')} of prompt {prompt}", written.get(name), again[name], slack)
        error = again["ordinary_relative_error"]
        what = f"reconstruction of prompt {prompt} by ordinary Jacobians"
        yield _number(f"error of the {what}", written["ordinary_relative_error"], error, slack * (1 + (error or 0.0)))
        if reading.ordinary is not None:
            yield _same(what, run.vectors.get(f"reconstruction.ordinary.{prompt}"), reading.ordinary, slack)


def input_claims(run: Run, batch: JacobianBatch) -> Iterator[Claim]:
    """Compare the inputs with those of the forward pass."""
    slack = _slack(batch.dtype, batch.shapes[0][1])
    for token, operator in zip(run.tokens, batch.operators, strict=True):
        stored = run.vectors[f"x.{token.prompt}.{token.index}"]
        yield _same(f"input of {token.name}", stored, operator.x, slack)


def _slack(dtype: torch.dtype, width: int) -> float:
    """Return what a value of the forward pass may differ by, of its length; a tenth at most, as in `adjoint_bound`."""
    return min(SAFETY * epsilon(dtype) * math.sqrt(width), LARGEST_ADJOINT_BOUND)


def _same(what: str, stored: Tensor | None, fresh: Tensor, slack: float) -> Claim:
    """Claim that a vector is that of the forward pass, up to ``slack`` of its length."""
    truth = fresh.detach().cpu().double()
    if stored is None or stored.shape != truth.shape:
        return Claim(what, 0.0, math.inf, slack)
    length = float(truth.norm()) or 1.0
    return Claim(f"difference in the {what}", 0.0, float((stored.double() - truth).norm()) / length, slack)


def _number(what: str, written: float | None, fresh: float | None, slack: float) -> Claim:
    if written is None or fresh is None:
        return Claim(f"difference in the {what}", 0.0, 0.0 if written is fresh else math.inf, 0.0)
    return Claim(f"difference in the {what}", 0.0, abs(written - fresh), slack)

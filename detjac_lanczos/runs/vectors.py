"""The vectors of a run by name: what vectors.safetensors holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detjac_lanczos.operators import DetachedNetwork, JacobianBatch
from detjac_lanczos.runs.record import PromptReading
from detjac_lanczos.solvers import SVDResult


def run_vectors(
    network: DetachedNetwork, batch: JacobianBatch, results: Sequence[SVDResult], prompts: Sequence[PromptReading]
) -> dict[str, Tensor]:
    """Return what was found and what it was found of, under the names that `Run` lists, on the CPU.

    Parameters
    ----------
    network : DetachedNetwork
    batch : JacobianBatch
    results : sequence of SVDResult
        One for each operator.
    prompts : sequence of PromptReading
        One for each prompt of the network.
    """
    vectors: dict[str, Tensor] = {}
    missed = next((result.missed for result in results if result.missed is not None), None)
    if missed is not None:
        vectors["survey.basis"] = missed.basis
    for operator, result in zip(batch.operators, results, strict=True):
        place = f"{operator.prompt}.{operator.token}"
        vectors |= {f"U.{place}": result.U, f"S.{place}": result.S, f"V.{place}": result.V, f"x.{place}": operator.x}
        if result.guards is not None:
            vectors |= {f"guards.{name}.{place}": getattr(result.guards, name) for name in "USV"}
    for prompt, reading in enumerate(prompts):
        vectors[f"y.{prompt}"] = reading.detached.y
        vectors[f"reconstruction.detached.{prompt}"] = reading.detached.estimate
        if reading.ordinary is not None:
            vectors[f"reconstruction.ordinary.{prompt}"] = reading.ordinary
        embeds = network.prompts[prompt].embeds
        if embeds is not None:
            vectors[f"embeds.{prompt}"] = embeds.clone()
    if batch.operators[0].target.rows is not None:
        vectors["probe"] = batch.operators[0].target.rows
    return {name: value.detach().cpu().contiguous() for name, value in vectors.items()}

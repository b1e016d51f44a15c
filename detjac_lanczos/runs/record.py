"""The record of a run as plain data, what run.json holds and the page and the table read; and its vectors by name."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib import metadata
from typing import Any

import torch

import detjac_lanczos
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.operators import DetachedNetwork, Jacobian, JacobianBatch, Reconstruction
from detjac_lanczos.reading import Contribution, Decoded, StableRank
from detjac_lanczos.runs.folder import KIND
from detjac_lanczos.solvers.certificate import Certificate, Cluster
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.missed import Missed
from detjac_lanczos.solvers.result import SVDResult

FORMAT = 1


@dataclass(frozen=True)
class TokenReading:
    """What the triplets of one token mean; None and empty where the solve found none, but for what the token adds."""

    left: list[list[Decoded]]
    right: list[list[Decoded]]
    contribution: Contribution | None
    stable_rank: StableRank | None


@dataclass(frozen=True, eq=False)
class PromptReading:
    """How well one prompt's output is rebuilt.

    ``ordinary`` is the same sum with ordinary Jacobians, (d_out,); None at targets where there is no such product.
    """

    position: int
    detached: Reconstruction
    ordinary: torch.Tensor | None


def make_record(
    network: DetachedNetwork,
    batch: JacobianBatch,
    results: Sequence[SVDResult],
    tokens: Sequence[TokenReading],
    prompts: Sequence[PromptReading],
    *,
    options: Mapping[str, Any],
    choices: Mapping[str, Any],
    times: Mapping[str, float],
) -> dict[str, Any]:
    """Return the record of a run: JSON data, non-finite numbers as None."""
    definition = definition_of(batch, [reading.position for reading in prompts])
    reconstructions = [reconstruction_record(network, batch, prompt, reading) for prompt, reading in enumerate(prompts)]
    record = {
        "format": FORMAT,
        "kind": KIND,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "versions": {
            "detjac_lanczos": detjac_lanczos.__version__,
            "torch": metadata.version("torch"),
            "transformers": metadata.version("transformers"),
            "python": platform.python_version(),
        },
        "model": network.loaded.name,
        "live": network.loaded.live,
        "fingerprint": network.loaded.fingerprint,
        "quantization": network.loaded.quantization,
        "loading": network.loaded.loading,
        "prompt": network.prompts[0].text,
        "prompts": [prompt.text for prompt in network.prompts],
        "token_ids": [prompt.ids for prompt in network.prompts],
        "prompt_tokens": [prompt.tokens for prompt in network.prompts],
        "position_ids": _positions(network.prompts),
        "freeze": network.freeze,
        "dtype": definition["dtype"],
        "device": str(network.device),
        "route": network.route,
        "definition": definition,
        "options": options,
        "prediction": network.predictions[0],
        "predictions": network.predictions,
        "reconstruction": reconstructions[0],
        "reconstructions": reconstructions,
        "tokens": [
            _identity(network, operator) | _token(result, reading)
            for operator, result, reading in zip(batch.operators, results, tokens, strict=True)
        ],
        "work": {"method": results[0].method, "why": results[0].why}
        | total_work([asdict(result.work) for result in results], batch),
        "plan": None if network.planned is None else network.planned.record,
        "choices": choices,
        "times": times,
    }
    plain: dict[str, Any] = as_plain(record)
    return plain


def run_vectors(
    network: DetachedNetwork, batch: JacobianBatch, results: Sequence[SVDResult], prompts: Sequence[PromptReading]
) -> dict[str, torch.Tensor]:
    """Return what was found and what it was found of, under the names that `Run` lists, on the CPU."""
    vectors: dict[str, torch.Tensor] = {}
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


def definition_of(batch: JacobianBatch, positions: Sequence[int]) -> dict[str, Any]:
    """Return what all operators of a batch are, in plain words; the positions of all prompts as one if they agree."""
    shared = {name: value for name, value in batch.operators[0].definition.items() if name != "token"}
    return shared | {"position": positions[0] if len(set(positions)) == 1 else list(positions)}


def _positions(prompts: Sequence[Prompt]) -> list[list[int]] | None:
    """Return where the tokens of every prompt stand, None where all stand at 0, 1, 2, ..."""
    if all(prompt.position_ids is None for prompt in prompts):
        return None
    return [list(prompt.position_ids or range(prompt.length)) for prompt in prompts]


def survey_record(missed: Missed) -> dict[str, Any]:
    """Return what a survey estimated of one token as plain data."""
    names = ("values", "residuals", "sigma_1", "confidence", "operators", "share", "frobenius", "probes", "flagged")
    plain: dict[str, Any] = as_plain({name: getattr(missed, name) for name in names})
    return plain


def certificate_from(record: Mapping[str, Any]) -> Certificate:
    """Return the certificate that a token's record holds."""
    values: dict[str, Any] = {field.name: record.get(field.name) for field in fields(Certificate)}
    values["clusters"] = tuple(Cluster(tuple(c["indices"]), c["residual"]) for c in values["clusters"])
    values["orthonormality"] = tuple(values["orthonormality"])
    if (claim := values["completeness"]) is not None:
        known = {field.name: claim[field.name] for field in fields(Completeness)}
        values["completeness"] = Completeness(**known | {name: tuple(claim[name]) for name in ("steps", "upper")})
    return Certificate(**values)


def as_plain(value: Any) -> Any:
    """Return JSON data: tuples as lists, enums as their values, non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(asdict(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.Tensor):
        return as_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _identity(network: DetachedNetwork, operator: Jacobian) -> dict[str, Any]:
    assert operator.token is not None, "a run is of single tokens"
    prompt, index = network.prompts[operator.prompt], operator.token
    return {
        "prompt": operator.prompt,
        "index": index,
        "id": prompt.ids[index] if prompt.ids else None,
        "token": prompt.tokens[index],
    }


def _token(result: SVDResult, reading: TokenReading) -> dict[str, Any]:
    certificate, rank = result.certificate, reading.stable_rank
    return {
        "singular_values": result.S,
        "residuals": result.residuals,
        "floor": result.floor,
        "energy": result.energy,
        "status": result.status,
        "advice": result.advice,
        "certificate": None
        if certificate is None
        else asdict(certificate) | {"line": certificate.line, "radius": certificate.radius},
        "survey": None if result.missed is None else survey_record(result.missed),
        "stable_rank": None if rank is None else rank.value,
        "stable_rank_interval": None if rank is None else rank.interval,
        "stable_rank_confidence": None if rank is None else rank.confidence,
        "left": reading.left,
        "right": [
            [{"token": entry.token, "id": entry.id, "score": entry.score} for entry in entries]
            for entries in reading.right
        ],
        "contribution": reading.contribution,
        "work": result.work,
    }


def reconstruction_record(
    network: DetachedNetwork, batch: JacobianBatch, prompt: int, reading: PromptReading
) -> dict[str, float | None]:
    """Return how far one prompt's output is from what was rebuilt, and from what the ordinary Jacobians give.

    Of an altered network, whose output is its own, neither says anything: None.
    """
    detached, model, ordinary = reading.detached, None, None
    if str(batch.operators[0].target) == "output" and not network.altered:
        output = network.streams.model_output[network.start_of(prompt) + reading.position]
        model = Reconstruction.of(output, detached.estimate, output).relative_error
    if reading.ordinary is not None:
        ordinary = Reconstruction.of(detached.y, reading.ordinary, detached.y).relative_error
    return {
        "relative_error": None if network.altered else detached.relative_error,
        "norm_error": None if network.altered else detached.norm_error,
        "offset_share": detached.offset_share,
        "ordinary_relative_error": ordinary,
        "model_relative_error": model,
    }


def total_work(works: Sequence[Mapping[str, Any]], batch: JacobianBatch) -> dict[str, Any]:
    """Return what a run's tokens, each with its own `Work` as plain data, cost together."""
    forward, transposed = (sum(work[f"products_{way}"] for work in works) for way in ("forward", "transposed"))
    return {
        "row_sweeps": sum(work["row_sweeps"] for work in works),
        "dense_row_sweeps": batch.shared_cost() * batch.shapes[0][0],
        "passes": max(work["passes"] for work in works),
        "products": {"forward": forward, "transposed": transposed},
        "columns": forward + transposed,
        "seconds": max(work["seconds"] for work in works),
    }

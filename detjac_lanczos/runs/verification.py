"""`verify`: measure what a stored run claims again, on the model, with one pass of its vectors each way."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import ModelError
from detjac_lanczos.frozen.places import Place, probe
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators import DetachedNetwork, JacobianBatch, detach
from detjac_lanczos.runs.choices import replay_choices
from detjac_lanczos.runs.disk import load_run
from detjac_lanczos.runs.place_names import parse_place
from detjac_lanczos.runs.record import as_plain
from detjac_lanczos.runs.run import Run, TokenResult
from detjac_lanczos.solvers.certificate import Certificate
from detjac_lanczos.solvers.measure import Measurement, measure_triplets
from detjac_lanczos.solvers.rounding import SAFETY, epsilon, working_dtype


@dataclass(frozen=True)
class Claim:
    """One number that a run claims, measured again.

    ``claimed`` and ``measured`` are in the claim's own unit; ``allowed`` is the largest ``measured`` that bears the
    claim out: the claim itself and what rounding can add.
    """

    what: str
    claimed: float
    measured: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the measurement bears the claim out; one that is not a number does not."""
        return self.measured <= self.allowed

    def __str__(self) -> str:
        """Return the claim and its measurement in one line."""
        word = "holds" if self.holds else "FAILS"
        return f"{word}  {self.what}: claimed {self.claimed:.3g}, measured {self.measured:.3g}"


@dataclass(frozen=True)
class Verification:
    """Every claim of a run, measured again."""

    claims: list[Claim]

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    @property
    def failed(self) -> list[Claim]:
        """Claims that do not hold."""
        return [claim for claim in self.claims if not claim.holds]

    @property
    def record(self) -> dict[str, Any]:
        """Every claim as plain data: what ``detjac verify --json`` prints."""
        claims = [asdict(claim) | {"holds": claim.holds} for claim in self.claims]
        plain: dict[str, Any] = as_plain({"ok": self.ok, "claims": claims})
        return plain

    def __str__(self) -> str:
        """Return a line for each failed claim, and the count."""
        lines = [str(claim) for claim in self.failed]
        return "\n".join([*lines, f"{len(self.claims) - len(lines)} of {len(self.claims)} claims hold"])


def verify(
    run: Run | str | os.PathLike[str],
    model: LoadedModel | tuple[Any, Any] | str | None = None,
    *,
    device: str | None = None,
) -> Verification:
    """Load the model of a run again and measure what the run claims.

    The same weights (by fingerprint), token ids and recorded choices are used; each token's triplets are measured with
    one fresh pass each way. Residuals may exceed the recorded ones by the rounding floor c ε σ_1 √passes, values of
    the forward pass may differ by c ε √d of their length.

    Parameters
    ----------
    run : Run, or the folder of one
    model : LoadedModel, (model, tokenizer), or anything `load_model` takes, optional
        Needed if the run was made with a live model; by default the recorded name is loaded.
    device : str, optional
        Where a model that is loaded here is put.

    Returns
    -------
    Verification

    Raises
    ------
    RunFileError
        If the folder holds no whole run.
    ModelError
        If the model cannot be loaded, or its weights are not those of the run.
    """
    run = run if isinstance(run, Run) else load_run(run)
    record = run.record
    loaded = _load(record, model, device)
    network = detach(loaded, input_ids=record["token_ids"], freeze=record["freeze"])
    replay_choices(record["choices"])
    places: dict[str, Any] = {
        "source": parse_place(record["options"]["source"]),
        "target": _target(run),
        "position": record["options"]["position"],
    }
    batch = network.jacobians([(token.prompt, token.index) for token in run.tokens], **places)
    claims = [*_prompt_claims(run, network, places), *_input_claims(run, batch)]
    finite = [_finite_claim(token) for token in run.tokens]
    claims += finite
    measured = [index for index, claim in enumerate(finite) if claim.measured == 0]
    part = [run.tokens[index] for index in measured]
    if part:
        operators = JacobianBatch([batch.operators[index] for index in measured])
        vectors = ([getattr(token, name) for token in part] for name in "USV")
        passes = int(record["work"]["passes"])
        fresh = measure_triplets(operators, *vectors, tol=record["options"]["tol"], passes=passes)
        for token, found in zip(part, fresh, strict=True):
            claims += _triplet_claims(token, found, epsilon(working_dtype(batch.dtype)))
    return Verification(claims)


def _load(record: dict[str, Any], model: LoadedModel | tuple[Any, Any] | str | None, device: str | None) -> LoadedModel:
    if isinstance(model, LoadedModel):
        loaded = model
    elif isinstance(model, tuple):
        loaded = load_model(*model)
    else:
        loaded = load_model(model or record["model"], dtype=record["dtype"], device=device)
    if loaded.fingerprint != record["fingerprint"]:
        raise ModelError(
            f"the weights of {loaded.name!r} are not those of the run ({record['model']!r}, fingerprint "
            f"{record['fingerprint'][:12]}…); give the model that made it"
        )
    return loaded


def _target(run: Run) -> str | Place:
    return probe(run.vectors["probe"]) if "probe" in run.vectors else parse_place(run.record["options"]["target"])


def _prompt_claims(run: Run, network: DetachedNetwork, places: dict[str, Any]) -> Iterator[Claim]:
    for prompt, recorded in enumerate(run.reconstructions):
        operator = network.jacobian((prompt, 0), **places)
        slack = SAFETY * epsilon(network.dtype) * math.sqrt(len(recorded.y))
        yield _same(f"output of prompt {prompt}", recorded.y, operator.y, slack)
        # An output that is zero has no relative error: None in the record.
        claimed_error = run.record["reconstructions"][prompt]["relative_error"]
        if claimed_error is not None:
            error = operator.reconstruction.relative_error
            yield Claim(f"reconstruction of prompt {prompt}", claimed_error, error, claimed_error + slack)
        claimed, found = run.predictions[prompt][0], network.predictions[prompt]
        measured = next((candidate.probability for candidate in found if candidate.id == claimed.id), 0.0)
        what = f"difference in the probability of {claimed.token!r} after prompt {prompt}"
        yield Claim(what, 0.0, abs(claimed.probability - measured), slack)


def _input_claims(run: Run, batch: JacobianBatch) -> Iterator[Claim]:
    slack = SAFETY * epsilon(batch.dtype) * math.sqrt(batch.shapes[0][1])
    for token, operator in zip(run.tokens, batch.operators, strict=True):
        stored = run.vectors[f"x.{token.prompt}.{token.index}"]
        yield _same(f"input of {_name(token)}", stored, operator.x, slack)


def _same(what: str, stored: Tensor, fresh: Tensor, slack: float) -> Claim:
    truth = fresh.detach().cpu().double()
    if stored.shape != truth.shape:
        return Claim(what, 0.0, math.inf, slack)
    length = float(truth.norm()) or 1.0
    return Claim(f"difference in the {what}", 0.0, float((stored.double() - truth).norm()) / length, slack)


def _finite_claim(token: TokenResult) -> Claim:
    """Triplets are numbers, unless the record itself says that none were found."""
    count = sum(int((~torch.isfinite(part)).sum()) for part in (token.U, token.S, token.V))
    allowed = math.inf if None in token.record["singular_values"] else 0.0
    return Claim(f"numbers of {_name(token)} that are not finite", 0.0, float(count), allowed)


def _triplet_claims(token: TokenResult, found: Measurement, eps: float) -> Iterator[Claim]:
    record, name = token.record, _name(token)
    fresh, residuals = found.certificate, found.residuals
    floor = fresh.floor
    for j, (claimed, measured) in enumerate(zip(token.residuals, residuals.tolist(), strict=True)):
        yield Claim(f"residual of triplet {j + 1} of {name}", max(claimed), max(measured), max(claimed) + floor)
    written = torch.tensor(record["singular_values"], dtype=torch.float64)
    apart = float((written - token.S.double()).abs().max())
    yield Claim(f"difference between record and vectors in the values of {name}", 0.0, apart, 0.0)
    certificate = token.certificate
    wanted = len(token.S) if token.status in ("converged", "breakdown_exact") else 0
    if certificate is not None:
        wanted = max(wanted, certificate.claimed)
        yield from _certificate_claims(certificate, fresh, name, eps, float(token.S.min()))
        different = float(certificate.line != record["certificate"]["line"])
        yield Claim(f"difference between the certificate of {name} and its line", 0.0, different, 0.0)
    met = residuals.amax(dim=1) <= fresh.tol * token.S.double() + floor
    yield Claim(f"triplets of {name} short of those claimed", 0.0, max(0.0, float(wanted - met.sum())), 0.0)


def _certificate_claims(
    claimed: Certificate, fresh: Certificate, name: str, eps: float, smallest: float
) -> Iterator[Claim]:
    slack = SAFETY * eps * math.sqrt(claimed.k)
    for side, was, measured in zip(("left", "right"), claimed.orthonormality, fresh.orthonormality, strict=True):
        yield Claim(f"loss of orthonormality, {side} vectors of {name}", was, measured, was + slack)
    if fresh.claimed == claimed.claimed:
        allowed = claimed.e_k + math.sqrt(claimed.k) * fresh.floor
        yield Claim(f"block residual of {name}", claimed.e_k, fresh.e_k, allowed)
        allowed = claimed.residual + fresh.floor / smallest if smallest > 0 else math.inf
        yield Claim(f"certified residual of {name}", claimed.residual, fresh.residual, allowed)
    yield Claim(f"difference of the certified tolerance of {name}", 0.0, abs(claimed.tol - fresh.tol), 0.0)


def _name(token: TokenResult) -> str:
    return f"token {token.index} of prompt {token.prompt}"

"""`verify`: measure what a stored run claims again, on the model, with one pass of its vectors each way."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import ModelError
from detjac_lanczos.frozen.converted import load_converted
from detjac_lanczos.frozen.places import Place, probe
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators import DetachedNetwork, JacobianBatch, detach
from detjac_lanczos.runs.choices import replay_choices
from detjac_lanczos.runs.claims import Claim, Verification
from detjac_lanczos.runs.completeness import completeness_claims
from detjac_lanczos.runs.disk import load_run
from detjac_lanczos.runs.energy import energy_claims
from detjac_lanczos.runs.place_names import parse_place
from detjac_lanczos.runs.rereading import copies_claim, prompt_claims, token_claims, work_claim
from detjac_lanczos.runs.run import Run, TokenResult
from detjac_lanczos.runs.survey_claims import survey_claims
from detjac_lanczos.solvers.batch import Subset
from detjac_lanczos.solvers.certificate import Certificate
from detjac_lanczos.solvers.measure import Measurement, measure_triplets
from detjac_lanczos.solvers.rounding import SAFETY, epsilon, working_dtype


def verify(
    run: Run | str | os.PathLike[str],
    model: LoadedModel | tuple[Any, Any] | str | None = None,
    *,
    device: str | None = None,
) -> Verification:
    """Load the model of a run again and measure what the run claims.

    The same weights (by fingerprint), token ids and recorded choices are used; each token's triplets are measured with
    one fresh pass each way, then decoded again; claims of completeness are made again from the random vectors that they
    rest on. Residuals may exceed the recorded ones by the rounding floor c ε σ_1 √passes, values of the forward pass
    may differ by c ε √d of their length. What nothing can measure again (work, times, choices) is recorded only, and
    the verification says so.

    Parameters
    ----------
    run : Run, or the folder of one
    model : LoadedModel, (model, tokenizer), or anything `load_model` takes, optional
        Needed if the run was made with a live model; by default the recorded name is loaded. Of a live one in another
        dtype than the run's a converted copy is made, as by `detach`.
    device : str, optional
        Where the weights are put; a live model elsewhere is copied there.

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
    network = detach(loaded, **_inputs(run), freeze=record["freeze"], memory=record["options"].get("memory"))
    replay_choices(record["choices"])
    places: dict[str, Any] = {
        "source": parse_place(record["options"]["source"]),
        "target": _target(run),
        "position": record["options"]["position"],
    }
    batch = network.jacobians([(token.prompt, token.index) for token in run.tokens], **places)
    claims = [*_output_claims(run, network, places), *prompt_claims(run, network), *_input_claims(run, batch)]
    claims += [copies_claim(run), work_claim(run, batch)]
    finite = [_finite_claim(token) for token in run.tokens]
    claims += finite
    measured = [index for index, claim in enumerate(finite) if claim.measured == 0]
    part = [run.tokens[index] for index in measured]
    # No search takes more passes than there are columns to find: a larger count would only excuse residuals.
    passes = min(int(record["work"]["passes"]), sum(batch.shapes[0]))
    if part:
        operators = JacobianBatch([batch.operators[index] for index in measured])
        claims += completeness_claims(run, operators, part, passes)
    measured = [index for index in measured if len(run.tokens[index].S)]
    part = [run.tokens[index] for index in measured]
    if part:
        operators = JacobianBatch([batch.operators[index] for index in measured])
        told, estimates = survey_claims(run, operators, part)
        claims += [*told, *_certified_claims(run, operators, part, passes)]
        claims += token_claims(run, network, operators, part, places, estimates)
    return Verification(claims)
    return Verification(claims)


def _inputs(run: Run) -> dict[str, Any]:
    """Return the token ids or embeddings of a run, and where its tokens stand."""
    ids, positions = run.record["token_ids"], {"position_ids": run.record.get("position_ids")}
    if all(ids):
        return {"input_ids": ids} | positions
    return {"inputs_embeds": [run.vectors[f"embeds.{prompt}"] for prompt in range(len(ids))]} | positions


def _load(record: dict[str, Any], model: LoadedModel | tuple[Any, Any] | str | None, device: str | None) -> LoadedModel:
    if model is None or isinstance(model, str | os.PathLike):
        options = {"dtype": record["dtype"], "quantization": record.get("quantization")}
        loaded = load_model(model or record["model"], **options, device=device)
    else:
        loaded = load_converted(model, record["dtype"], device)
    if loaded.fingerprint != record["fingerprint"]:
        raise ModelError(
            f"the weights of {loaded.name!r} are not those of the run ({record['model']!r}, fingerprint "
            f"{record['fingerprint'][:12]}…); give the model that made it"
        )
    return loaded


def _target(run: Run) -> str | Place:
    return probe(run.vectors["probe"]) if "probe" in run.vectors else parse_place(run.record["options"]["target"])


def _output_claims(run: Run, network: DetachedNetwork, places: dict[str, Any]) -> Iterator[Claim]:
    """Measure each prompt's output and how well it is rebuilt; an output of zero has no relative error (None)."""
    for prompt, recorded in enumerate(run.reconstructions):
        operator = network.jacobian((prompt, 0), **places)
        slack = SAFETY * epsilon(network.dtype) * math.sqrt(len(recorded.y))
        yield _same(f"output of prompt {prompt}", recorded.y, operator.y, slack)
        fresh = operator.reconstruction
        written = run.record["reconstructions"][prompt]
        for name in ("relative_error", "norm_error"):
            if written[name] is not None:
                what = f"reconstruction of prompt {prompt}, {name.replace('_', ' ')}"
                yield Claim(what, written[name], getattr(fresh, name), written[name] + slack)
        if written["offset_share"] is not None:
            apart = abs(written["offset_share"] - fresh.offset_share)
            yield Claim(f"difference in the offset's share of the output of prompt {prompt}", 0.0, apart, slack)


def _input_claims(run: Run, batch: JacobianBatch) -> Iterator[Claim]:
    slack = SAFETY * epsilon(batch.dtype) * math.sqrt(batch.shapes[0][1])
    for token, operator in zip(run.tokens, batch.operators, strict=True):
        stored = run.vectors[f"x.{token.prompt}.{token.index}"]
        yield _same(f"input of {token.name}", stored, operator.x, slack)


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
    return Claim(f"numbers of {token.name} that are not finite", 0.0, float(count), allowed)


def _certified_claims(run: Run, batch: JacobianBatch, tokens: Sequence[TokenResult], passes: int) -> Iterator[Claim]:
    """Send the triplets of ``tokens`` through their operators, one pass each way; estimates claim none of it."""
    certified = [index for index, token in enumerate(tokens) if not token.estimated]
    if not certified:
        return
    operators = JacobianBatch([batch.operators[index] for index in certified])
    part = [tokens[index] for index in certified]
    vectors = ([getattr(token, name) for token in part] for name in "USV")
    sweeps = Subset(operators, range(len(part)))
    fresh = measure_triplets(sweeps, *vectors, tol=run.record["options"]["tol"], passes=passes)
    for token, found in zip(part, fresh, strict=True):
        yield from _triplet_claims(token, found, epsilon(working_dtype(batch.dtype)))
    yield from energy_claims(run, operators, part)


def _triplet_claims(token: TokenResult, found: Measurement, eps: float) -> Iterator[Claim]:
    record, name = token.record, token.name
    fresh, residuals = found.certificate, found.residuals
    floor = fresh.floor
    for j, (claimed, measured) in enumerate(zip(token.residuals, residuals.tolist(), strict=True)):
        largest = max(part for part in claimed if part is not None)
        yield Claim(f"residual of triplet {j + 1} of {name}", largest, max(measured), largest + floor)
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

"""`verify`: measure what a stored run claims again, on the model, with one pass of its vectors each way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from detjac_lanczos.errors import InputError, ModelError, RunFileError
from detjac_lanczos.frozen.converted import load_converted
from detjac_lanczos.frozen.drop import part_named
from detjac_lanczos.frozen.places import Place, parse_place, probe
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.kernel_choices import kernel_choices_in_force
from detjac_lanczos.models.loaded import ModelLike
from detjac_lanczos.models.loading import options_from
from detjac_lanczos.operators import DetachedNetwork, JacobianBatch, detach
from detjac_lanczos.reading.record_values import Record
from detjac_lanczos.runs.claims import Claim, Verification
from detjac_lanczos.runs.coherence_claims import coherence_claims, wording_notes
from detjac_lanczos.runs.completeness_claims import completeness_claims
from detjac_lanczos.runs.loading import load_run
from detjac_lanczos.runs.output_claims import input_claims, output_claims
from detjac_lanczos.runs.reading_claims import copies_claim, prompt_claims, token_claims, work_claim
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.survey_claims import survey_claims
from detjac_lanczos.runs.threshold_claims import exhausted_claims, threshold_claims, threshold_notes
from detjac_lanczos.runs.triplet_claims import finite_claim, triplet_claims

_STEPS = ("outputs", "bounds and estimates", "triplets", "what vectors decode to")


def verify(
    run: Run | str | os.PathLike[str],
    model: ModelLike | None = None,
    *,
    device: str | torch.device | None = None,
    callback: Callable[[str, int, int], object] | None = None,
) -> Verification:
    """Load the model of a run again and measure what the run claims.

    The same weights (by fingerprint), token ids and recorded choices are used, and what was switched off is so again;
    each token's triplets are measured with one fresh pass each way, then decoded again; claims of completeness are made
    again from the random vectors that they rest on, and where all values above a threshold were asked for, or nothing
    is said to be left, others look for one that is missing. Residuals may exceed the recorded ones by c ε √passes of
    the longest product, which is σ_1 where that was found; values of the forward pass may differ by c ε √d of their
    length, a tenth at most. What the record says besides is compared with the network and with the options; words, such
    as the definition of the operators, only in a note: another version may put them otherwise. What nothing can measure
    again (work, times, choices) is recorded only, and the verification says so.

    Parameters
    ----------
    run : Run, or the folder of one
    model : LoadedModel, (model, tokenizer), or anything `load_model` takes, optional
        Needed if the run was made with a live model whose name does not load; by default the recorded name is loaded.
        Of a live one in another dtype than the run's a converted copy is made, as by `detach`. Where the run had a
        tokenizer the model has one, too; where it had none, that of the model is not used.
    device : str or torch.device, optional
        Where the weights are put; a live model elsewhere is copied there.
    callback : callable, optional
        Called as each step begins, with what is measured in it, its number from 0, and how many there are.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        If ``callback`` cannot be called, a run of a live model whose name does not load is given without it, a run that
        had a tokenizer with a model that has none, or a part that the record says was switched off does not exist.
    RunFileError
        If the folder holds no whole run.
    ModelError
        If the model cannot be loaded, or its weights are not those of the run.
    """
    if callback is not None and not callable(callback):
        raise InputError(f"callback = {callback!r} cannot be called: give a function of three arguments, or None")
    run = run if isinstance(run, Run) else load_run(run)
    loaded = _load(run.record, model, device)
    with kernel_choices_in_force(run.record["choices"]):
        return _measured(run, loaded, callback)


def _measured(run: Run, loaded: LoadedModel, callback: Callable[[str, int, int], object] | None) -> Verification:
    """Measure what a run claims on its model."""
    record = run.record
    network = detach(loaded, **_inputs(run), freeze=record["freeze"], memory=record["options"]["memory"])
    if off := record["definition"].get("switched_off"):
        network = network.replace(drop=map(part_named, off))
    places: dict[str, Any] = {
        "source": parse_place(record["options"]["source"]),
        "target": _target(run),
        "position": record["options"]["position"],
    }
    batch = network.jacobians([(token.prompt, token.index) for token in run.tokens], **places)
    _require_fit(run, batch)

    def begin(step: int) -> None:
        if callback is not None:
            callback(f"measuring {_STEPS[step]}", step, len(_STEPS))

    finite = [finite_claim(token) for token in run.tokens]
    sound = [index for index, claim in enumerate(finite) if claim.measured == 0]
    begin(0)
    claims = [
        *output_claims(run, network, batch, places),
        *prompt_claims(run, network),
        *input_claims(run, batch),
        *coherence_claims(run, network, batch, places),
        copies_claim(run),
        work_claim(run, batch),
        *finite,
        *_vector_claims(run, network, batch, places, sound, begin),
    ]
    estimated = tuple(token.name for token in run.tokens if token.estimated)
    loading = ", ".join(f"{name}={value!r}" for name, value in record["loading"].items())
    notes = [f"the model was loaded with {loading}"] if loading else []
    notes += [*threshold_notes(run), *wording_notes(record, batch)]
    return Verification(claims, estimated, tuple(notes))


def _vector_claims(
    run: Run,
    network: DetachedNetwork,
    batch: JacobianBatch,
    places: Mapping[str, Any],
    sound: Sequence[int],
    begin: Callable[[int], None],
) -> Iterator[Claim]:
    """Send the vectors of tokens through the network: of the ``sound``, by index, whose numbers are all finite."""
    # No search takes more passes than there are columns to find: a larger count would only excuse residuals.
    passes = min(int(run.record["work"]["passes"]), sum(batch.shapes[0]))
    begin(1)
    if not sound:
        return
    part, tokens = batch.part(sound), [run.tokens[index] for index in sound]
    yield from completeness_claims(run, part, tokens, passes)
    yield from threshold_claims(run, part, tokens)
    yield from exhausted_claims(run, part, tokens)
    told, estimates = survey_claims(run, part, tokens)
    yield from told
    begin(2)
    yield from triplet_claims(run, part, tokens, passes)
    begin(3)
    yield from token_claims(run, network, part, tokens, places, estimates)


def _require_fit(run: Run, batch: JacobianBatch) -> None:
    """Refuse vectors that are not of the lengths of the operators."""
    for token, (d_out, d_in) in zip(run.tokens, batch.shapes, strict=True):
        if (token.U.shape[0], token.V.shape[0]) != (d_out, d_in):
            raise RunFileError(
                f"the vectors of {token.name} have lengths {token.U.shape[0]} and {token.V.shape[0]}, the model's "
                f"Jacobians are {d_out} × {d_in}: they are of another run; make the run again"
            )


def _inputs(run: Run) -> dict[str, Any]:
    """Return the token ids or embeddings of a run, and where its tokens stand."""
    ids, positions = run.record["token_ids"], {"position_ids": run.record["position_ids"]}
    if all(ids):
        return {"input_ids": ids} | positions
    return {"inputs_embeds": [run.vectors[f"embeds.{prompt}"] for prompt in range(len(ids))]} | positions


def _load(record: Record, model: ModelLike | None, device: str | torch.device | None) -> LoadedModel:
    """Return the model of a run, which has the weights that the run had."""
    if model is None or isinstance(model, str | os.PathLike):
        loaded, how = _load_named(record, model, device), ""
    else:
        loaded, how = _load_live(record, model, device)
    if loaded.fingerprint != record["fingerprint"]:
        raise ModelError(
            f"the weights of {loaded.name!r}{how} are not those of the run ({record['model']!r}, fingerprint "
            f"{record['fingerprint'][:12]}…); give the model that made it"
        )
    if not _had_tokenizer(record):
        return replace(loaded, tokenizer=None)  # tokens are compared by their texts, which were their ids
    if loaded.tokenizer is None:
        raise InputError(f"the run had a tokenizer, {loaded.name!r} comes without one: give (model, tokenizer)")
    return loaded


def _had_tokenizer(record: Record) -> bool:
    """Whether the tokens of a run have other names than `decode` gives them by their ids alone."""
    named = [(candidate["id"], candidate["token"]) for ranked in record["predictions"] for candidate in ranked]
    for ids, tokens in zip(record["token_ids"], record["prompt_tokens"], strict=False):
        named += zip(ids, tokens, strict=False)
    return not any(token == f"<{i}>" for i, token in named)


def _load_named(record: Record, model: str | os.PathLike[str] | None, device: str | torch.device | None) -> LoadedModel:
    """Load a model by the name given, or else by the one recorded, with the options that are recorded."""
    name = model or record["model"]
    options = {"dtype": record["dtype"], "quantization": record["quantization"], "device": device}
    moved = record["model"] not in (os.fspath(name), os.path.abspath(name))
    loading = options_from(record["loading"], moved=moved, placed=device is not None)
    try:
        return load_model(name, **options, **loading)
    except (InputError, ModelError) as error:
        if model is None and record["live"]:
            raise InputError(
                f"the run was made with a live model ({name}): give that, with the tokenizer that it had"
            ) from error
        if model is None and os.path.isabs(name) and not os.path.exists(name):
            raise InputError(
                f"the model of the run is no longer at {name}; say where it is now (model=, or detjac verify --model)"
            ) from error
        raise


def _load_live(record: Record, model: Any, device: str | torch.device | None) -> tuple[LoadedModel, str]:
    """Return a live model as it is, where it is the one, or else in the run's dtype; and in words what was changed."""
    loaded = load_converted(model, None, device)
    if loaded.fingerprint == record["fingerprint"]:
        return loaded, ""
    own = str(compute_dtype(loaded.model)).removeprefix("torch.")
    how = "" if own == record["dtype"] else f", converted from {own} to {record['dtype']},"
    return load_converted(model, record["dtype"], device), how


def _target(run: Run) -> str | Place:
    return probe(run.vectors["probe"]) if "probe" in run.vectors else parse_place(run.record["options"]["target"])

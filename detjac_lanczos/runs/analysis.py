"""`analyze`: from a model and a prompt, or their network, to certified, decoded singular vectors of every token."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from detjac_lanczos.budget import Memory
from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.converted import load_converted
from detjac_lanczos.frozen.drop import named_parts
from detjac_lanczos.frozen.places import Place, layer
from detjac_lanczos.frozen.prompt import Embeddings, Integers
from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.models.kernel_choices import kernel_choices, kernel_choices_in_force
from detjac_lanczos.models.loaded import ModelLike
from detjac_lanczos.models.quantization import Packing
from detjac_lanczos.operators import DetachedNetwork, JacobianBatch, detach
from detjac_lanczos.operators.tokens import Token
from detjac_lanczos.runs.beforehand import (
    check_on_configuration,
    read_position,
    read_tokens_wanted,
    solver_choices,
)
from detjac_lanczos.runs.checkpoint import Checkpoint, NotedBatch
from detjac_lanczos.runs.progress import usual_progress
from detjac_lanczos.runs.readings import read_triplets, rebuild_outputs
from detjac_lanczos.runs.record import make_record, run_vectors
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.search_options import Polish, SearchOptions, check_search, search_record
from detjac_lanczos.runs.surveying import estimates_of, search_batch
from detjac_lanczos.solvers.options import Callback, Certify, SearchMethod, default_k


def analyze(
    model: ModelLike | DetachedNetwork,
    prompt: str | Sequence[str] | None = None,
    k: int | None = None,
    *,
    threshold: float | None = None,
    energy: float | None = None,
    tokens: slice | Token | Iterable[Token] | None = None,
    tol: float = 1e-3,
    certify: Certify | None = "triplets",
    delta: float = 1e-6,
    method: SearchMethod = "auto",
    polish: Polish = None,
    seed: int = 0,
    block: int | None = None,
    max_products: int | None = None,
    freeze: Freeze | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: Packing | None = None,
    source: str | Place = "embeddings",
    target: str | Place = "output",
    position: int = -1,
    chat: bool | None = None,
    add_special_tokens: bool | None = None,
    input_ids: Integers | None = None,
    inputs_embeds: Embeddings | None = None,
    attention_mask: Integers | None = None,
    position_ids: Integers | None = None,
    memory: Memory | None = None,
    choices: Mapping[str, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
) -> Run:
    """Find, certify and decode the k leading singular triplets of every token's detached Jacobian, in lockstep.

    Parameters
    ----------
    model : LoadedModel, (model, tokenizer), or anything `load_model` takes; or DetachedNetwork
        Of a network that is there already, by `detach` or `DetachedNetwork.load`, nothing is captured again (ordinary
        Jacobians, for contrast, and values of branches still take a pass of the model): what it was captured with (all
        options of `detach` and `load_model`) goes into the record, and none of it may be given. What
        ``replace(drop=...)`` switched off is told wherever the model is, and y is then the network's own.
    prompt : str or list of str
        Several prompts share every sweep; their tokens are addressed as (prompt, token).
    k : int, optional
        Triplets of each token; by default 8, or the smaller side of the Jacobians where that is less.
    threshold, energy : float, optional
        In place of k: all triplets above a value, or enough for a share of ‖J‖_F²; see `svd`.
    tokens : slice, index, (prompt, token), or list of indices and pairs, optional
        All tokens by default. A tuple of two numbers is one (prompt, token).
    tol : float
        Bound on max(ρ_R, ρ_L) / σ_j of every triplet.
    certify : {"triplets", "complete", None}
    delta : float
        Probability, for each token, that the claim "complete" makes is wrong; see `svd`.
    method : {"auto", "lanczos", "randomized", "dense", "shared_basis"}
        "shared_basis" surveys a long prompt: estimates for every token, in a third of the rows of dense, and no
        certificate but those of the tokens that are polished.
    polish : "flagged" or int, optional
        Tokens of a survey to bring to the certificate: those whose σ_1 it may have estimated wrong by more than 5 %, or
        so many, the worst first.
    seed : int
        Seeds the start of the search and the probes of the stable rank: from 0 to 2³² - 1.
    block : int, optional
        Width of the Lanczos blocks.
    max_products : int, optional
        Columns both ways that may be spent on each token, by a survey before any polish; see `svd`.
    freeze : {"gate", "up", "half"}, optional
        Which factor of a gated MLP is frozen; see `detach`, whose default it has, as those named below have.
    dtype, device : optional
        As in `detach`: a named model is loaded so, of a live one a converted copy is made.
    quantization : str, optional
        As in `load_model`: how the weights of a named model are packed on the way.
    source, target, position
        Where the Jacobians begin and end; see `DetachedNetwork.jacobian`.
    chat, add_special_tokens, input_ids, inputs_embeds, attention_mask, position_ids
        As in `detach`.
    memory : int, float or str, optional
        Budget for frozen factors and streams, such as "2GiB"; see `detach`.
    choices : mapping, optional
        ``run.record["choices"]`` of an earlier run: what was decided there by timing is repeated, not timed again.
    checkpoint : path, optional
        A folder in which every pass of the search (a survey's and its polish's too) is written down as it is made: the
        same call with the same folder goes on where an earlier one was cut off, and finds the same bit for bit; see
        `svd`. The times of the run hold those of earlier passes. It may be deleted once there is a run. Of a network
        that is the same one: saved and read back, not made by another pass.
    callback : callable, optional
        Called with a `Progress` after every pass of the solver; a bar in a notebook by default.

    Returns
    -------
    Run

    Raises
    ------
    InputError
        If the prompt, a token, the position, k or another option cannot be used, is given beside a network, or that
        was given coefficients.
    ModelError
        If the model cannot be loaded or trusted, or has changed since the network was made.
    OperatorError
        If a product comes out with a wrong shape, dtype or device.
    RunFileError
        If a file in ``checkpoint`` is damaged, or a pass there cannot be read as memory or file descriptors run out.
    """
    clock = _Clock()
    kept = None if checkpoint is None else Checkpoint(checkpoint)
    decided = {} if choices is None else solver_choices(choices)
    wanted, position = read_tokens_wanted(tokens), read_position(position)
    search = SearchOptions(
        threshold=threshold,
        energy=energy,
        tol=tol,
        method=method,
        block=block,
        max_products=max_products,
        seed=seed,
        certify=certify,
        delta=delta,
        callback=callback,
    )
    check_search(k, polish, search)
    k, seed = None if k is None else int(k), int(seed)
    capturing = _given(
        prompt=prompt,
        freeze=freeze,
        chat=chat,
        add_special_tokens=add_special_tokens,
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        memory=memory,
    )
    if isinstance(model, DetachedNetwork):
        _require_as_captured(model, capturing | _given(dtype=dtype, device=device, quantization=quantization))
    else:
        _require_no_operator(model)
        check_on_configuration(model, k=k, tokens=wanted, source=source, target=target, position=position)
        model = load_converted(model, dtype, device, quantization)
        clock.lap("load")
    with kernel_choices_in_force(choices or {}), nullcontext() if kept is None else kept.choices_in_force():
        network = model if isinstance(model, DetachedNetwork) else detach(model, **capturing)
        batch = network.jacobians(wanted, source=source, target=target, position=position)
        _require_distinct(batch)
        if k is None and threshold is None and energy is None:
            k = default_k(batch.shapes)
        if network is not model:
            clock.lap("capture")
        with usual_progress(callback, tol) as shown:
            search["callback"] = shown
            sent, folder = (batch, None) if kept is None else (NotedBatch(batch, kept), kept.folder)
            results = search_batch(sent, k, polish, search, decided, folder)
        clock.lap("solve", least=max(result.work.seconds for result in results))
        signed, token_readings = read_triplets(
            network, batch, results, target=target, seed=seed, estimates=estimates_of(results)
        )
        prompt_readings = rebuild_outputs(network, batch, source=source, target=target, position=position)
        clock.lap("read")
        options = search_record(k, polish, search) | {
            "tokens": None if tokens is None else [[operator.prompt, operator.token] for operator in batch.operators],
            "source": "embeddings" if batch.operators[0].source < 0 else str(layer(batch.operators[0].source)),
            "target": str(batch.operators[0].target),
            "position": position,
            "chat": network.prompts[0].chat,
            "add_special_tokens": network.prompts[0].add_special_tokens,
            "memory": None if network.planned is None else network.planned.memory,
        }
        record = make_record(
            network,
            batch,
            signed,
            token_readings,
            prompt_readings,
            options=options,
            choices={"solver": results[0].choices, **kernel_choices()},
            times=clock.times(),
        )
        return Run(record, run_vectors(network, batch, signed, prompt_readings))


class _Clock:
    """Seconds between laps, and in total; a lap that went on from a checkpoint took longer than this process saw."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str, least: float = 0.0) -> None:
        now = time.perf_counter()
        self._laps[name], self._last = max(now - self._last, least), now

    def times(self) -> dict[str, float]:
        return self._laps | {"total": sum(self._laps.values())}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _require_as_captured(network: DetachedNetwork, given: Mapping[str, Any]) -> None:
    """Refuse options that a network has already, and one that its model, as it is, and a record would not give."""
    if given:
        raise InputError(
            f"a network has what it was captured with, and is given more: {', '.join(given)}; leave that out, or give "
            "the model in its place"
        )
    if network.changed:
        raise InputError(
            f"{named_parts(sorted(network.changed))} hold values that were given, and no record of a run says which; "
            "use svd(network.jacobian(...)), or a network from replace(drop=...)"
        )
    network.own_weights.require_model()


def _require_no_operator(given: object) -> None:
    if hasattr(given, "rmatmat"):
        raise InputError(
            f"analyze takes a model, or the network of one, not {type(given).__name__}: svd(J, k) finds the triplets "
            "of an operator, analyze(network) those of every token of the network that it came from"
        )


def _require_distinct(batch: JacobianBatch) -> None:
    chosen = Counter((operator.prompt, operator.token) for operator in batch.operators)
    for (prompt, token), times in chosen.items():
        if times > 1:
            raise InputError(f"token {token} of prompt {prompt} is given twice; give each token once")

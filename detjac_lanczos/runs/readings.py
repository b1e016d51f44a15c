"""Everything the reading room says about the triplets of a run, gathered with few passes over vocabulary and model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from detjac_lanczos.frozen.places import Place
from detjac_lanczos.operators import DetachedNetwork, JacobianBatch
from detjac_lanczos.reading import (
    Contribution,
    Decoded,
    StableRank,
    contributions,
    decode_left,
    decode_right,
    estimate_contributions,
    stable_ranks,
    surveyed_stable_rank,
)
from detjac_lanczos.runs.record import PromptReading, TokenReading
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers import Missed, SVDResult
from detjac_lanczos.solvers.result import Status

CANDIDATES = 10
"""Tokens that each vector is decoded to."""

_Found = TypeVar("_Found", SVDResult, TokenResult)


def read_triplets(
    network: DetachedNetwork,
    batch: JacobianBatch,
    results: Sequence[_Found],
    *,
    target: str | Place,
    seed: int,
    estimates: Mapping[int, Missed],
    top: int = CANDIDATES,
) -> tuple[list[_Found], list[TokenReading]]:
    """Decode and measure the triplets of every token; return them with their signs fixed, and the readings.

    Results (`SVDResult`, or the tokens of a stored run) without finite triplets pass through; where there are none to
    be found, as above a threshold, the contribution is read. ``estimates`` are what a survey knows of those that it
    leaves as estimates, by their index: these are read from shared rows. ``top`` is the number of tokens that each
    vector is decoded to.
    """
    signed = list(results)
    readings = [TokenReading([], [], None, None) for _ in results]
    if bare := [index for index, result in enumerate(results) if _needs_none(result)]:
        added = contributions(batch.part(bare), [results[index] for index in bare])
        for index, contribution in zip(bare, added, strict=True):
            readings[index] = TokenReading([], [], contribution, None)
    found = [index for index, result in enumerate(results) if len(result.S) and bool(torch.isfinite(result.S).all())]
    if not found:
        return signed, readings
    left, signs = _decode_left(network, batch, results, found, target, top)
    for index in found:
        result = results[index]
        signed[index] = replace(result, U=result.U * signs[index], V=result.V * signs[index])
    vectors = torch.cat([signed[index].V for index in found], dim=1)
    right = _split(decode_right(network, vectors, top), found, results)
    shares: dict[int, Contribution] = {}
    ranks: dict[int, StableRank] = {}
    if exact := [index for index in found if index not in estimates]:
        part, triplets = batch.part(exact), [signed[index] for index in exact]
        shares |= zip(exact, contributions(part, triplets), strict=True)
        ranks |= zip(exact, stable_ranks(part, triplets, seed=seed), strict=True)
    if estimated := [index for index in found if index in estimates]:
        part, triplets = batch.part(estimated), [signed[index] for index in estimated]
        shares |= zip(estimated, estimate_contributions(part, triplets, seed=seed), strict=True)
        ranks |= {index: surveyed_stable_rank(estimates[index]) for index in estimated}
    for index in found:
        readings[index] = TokenReading(left[index], right[index], shares[index], ranks[index])
    return signed, readings


def rebuild_outputs(
    network: DetachedNetwork, batch: JacobianBatch, *, source: str | Place, target: str | Place, position: int
) -> list[PromptReading]:
    """Rebuild every prompt's output from its detached Jacobians and, where there are such, from the ordinary ones.

    An altered network has no ordinary ones.
    """
    readings = []
    comparable = batch.operators[0].target.kind in ("output", "residual", "layer") and not network.altered
    if comparable and any(parameter.is_inference() for parameter in network.model.parameters()):
        warnings.warn(
            "the contrast with ordinary Jacobians is left out: the weights were made in torch.inference_mode()",
            stacklevel=2,
        )
        comparable = False
    for prompt in range(len(network.prompts)):
        operator = network.jacobian((prompt, 0), source=source, target=target, position=position)
        ordinary = None
        if comparable:
            joint = network.jacobian((prompt, "joint"), source=source, target=target, position=position, frozen=False)
            ordinary = joint.reconstruction.estimate
        readings.append(PromptReading(operator.position, operator.rebuilt, ordinary))
    return readings


def _needs_none(result: SVDResult | TokenResult) -> bool:
    """Whether a search that went well has found that there is no triplet of the kind that was asked for."""
    return not len(result.S) and Status(result.status).ended_well


def _decode_left(
    network: DetachedNetwork,
    batch: JacobianBatch,
    results: Sequence[_Found],
    found: Sequence[int],
    target: str | Place,
    top: int,
) -> tuple[dict[int, list[list[Decoded]]], dict[int, torch.Tensor]]:
    """Decode all tokens of a prompt in one pass over the vocabulary: they share y."""
    decoded: dict[int, list[list[Decoded]]] = {}
    signs: dict[int, torch.Tensor] = {}
    for prompt in dict.fromkeys(batch.operators[index].prompt for index in found):
        members = [index for index in found if batch.operators[index].prompt == prompt]
        vectors = torch.cat([results[index].U for index in members], dim=1)
        first = batch.operators[members[0]]
        row = network.start_of(prompt) + first.position
        candidates, flips = decode_left(network, vectors, first.y, target, top, row)
        decoded |= _split(candidates, members, results)
        widths = [results[index].U.shape[1] for index in members]
        signs |= dict(zip(members, flips.split(widths), strict=True))
    return decoded, signs


def _split(
    decoded: Sequence[list[Decoded]], members: Sequence[int], results: Sequence[_Found]
) -> dict[int, list[list[Decoded]]]:
    parts, start = {}, 0
    for index in members:
        stop = start + results[index].U.shape[1]
        parts[index] = list(decoded[start:stop])
        start = stop
    return parts

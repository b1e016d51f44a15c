"""Memory and time of a job before it runs: from a configuration, the code that allocates, and a device's rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from detjac_lanczos.budget import Memory, read_memory
from detjac_lanczos.errors import InputError, ModelError
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.frozen.sizes import NetworkShape
from detjac_lanczos.frozen.ways import Rates
from detjac_lanczos.frozen.words import Freeze, require_freeze
from detjac_lanczos.models.loaded import context_length_of
from detjac_lanczos.models.outline import outline, scratch, weight_bytes, weight_bytes_of
from detjac_lanczos.models.quantization import Quantization, read_quantization
from detjac_lanczos.operators.tokens import Token
from detjac_lanczos.runs.beforehand import read_tokens_wanted
from detjac_lanczos.runs.job_bytes import Asked, Demand, Otherwise, advice
from detjac_lanczos.runs.job_plan import Job, JobPlan
from detjac_lanczos.runs.job_seconds import Pace, capture_seconds
from detjac_lanczos.runs.machines import Machine, MachineName, machine
from detjac_lanczos.runs.schema import shown
from detjac_lanczos.solvers.options import DEFAULT_K, DEFAULT_WIDTH, check_k, check_tol, is_whole


def plan(
    model: Any,
    tokens: int,
    *,
    width: int = DEFAULT_WIDTH,
    k: int = DEFAULT_K,
    tol: float = 1e-3,
    device: MachineName = "cpu",
    memory: Memory | None = None,
    quantization: Quantization | None = None,
    dtype: str | torch.dtype = "auto",
    freeze: Freeze = "gate",
    chosen: slice | Token | Iterable[Token] | None = None,
) -> JobPlan:
    """Predict memory and time of a job from a configuration alone.

    Parameters
    ----------
    model : str, path or transformers configuration
        An embedded name, a hub id, a ``.gguf`` file, or a folder with a ``config.json``; no weights are needed.
    tokens : int
        Length of the prompt.
    width : int
        Columns of a block of the solver. `svd` begins with as many by default, and where a pass costs more than its
        columns, as of weights that are read in every sweep, it may go on with up to 8.
    k, tol : int, float
        As in `svd`, k at most the smaller dimension of one token's Jacobian. How many sweeps that takes is a fit to
        SmolLM2: other models may differ.
    device : {"h100", "h200", "a100", "cpu"}
        "cpu" is this processor, measured on the spot.
    memory : int, float or str, optional
        Bytes, or "40GiB", for everything, weights included; by default the device's. More than that stands for several
        of them.
    quantization : {"nf4", "nf4-double", "fp4", "fp4-double", "int8", "mxfp4"}, optional
        As bitsandbytes packs; by default what the configuration says.
    dtype : str or torch.dtype
        As in `load_model`.
    freeze : {"gate", "up", "half"}
    chosen : optional
        Tokens of the prompt that are asked about one by one, as ``tokens`` of `analyze`; all by default. Whether it
        fits is said of all tokens side by side in any case.

    Returns
    -------
    JobPlan

    Raises
    ------
    InputError
        If an argument makes no sense.
    ModelError
        If no configuration of a causal language model is found, or one without blocks.
    UnsupportedModelError
        If no family declares the model.
    """
    _check_counts(tokens=tokens, width=width, k=k)
    tokens, width, k = int(tokens), int(width), int(k)
    lengths = _lengths(tokens, chosen)
    check_tol(tol)
    require_freeze(freeze)
    whole, name, stored = outline(model, dtype)
    kind = read_quantization(quantization) or stored
    family = family_of(whole)
    if not len(family.blocks_of(whole)):
        raise ModelError(f"{name} has no blocks; give a configuration with one or more")
    shape = replace(family.shape(whole, freeze), scratch=scratch(whole, kind))
    budget = read_memory(memory)
    _check_sizes(whole, name, shape, tokens, width, k)
    precision = next(whole.parameters()).dtype
    found = machine(device, precision)
    limit = budget or found.memory
    demand = Demand(shape, k, tol, Rates.of(torch.device(found.type)))

    weights, inside = weight_bytes(whole, kind), _inside(whole, family, kind)
    streams = kind is None and weights.total() + demand.least(tokens, width) > limit
    resident = _streaming(weights, inside) if streams else weights.total()
    streamed = weights.total() - resident
    schedule = _schedule(demand, tokens, width, limit, resident)
    pace = Pace.of(whole, family, shape, sum(inside), streamed, packed=kind is not None)
    setting = _Setting(demand, width, resident, schedule, pace, found)

    every = demand.alone(lengths, width, schedule.rebuilt)
    joint = setting.job("joint", demand.together(tokens, width, schedule.rebuilt), [tokens])
    at_once = len(lengths)
    changes: tuple[str, ...] = ()
    if joint.peak > limit:
        others = _other_ways(demand, whole, family, kind, stored)
        changes = advice(demand, limit, tokens, width, resident, others)
    elif max(every.bytes, every.otherwise) > (room := limit - setting.held):
        at_once = demand.at_once(lengths, width, schedule.rebuilt, room)
    return JobPlan(
        model=name,
        dtype=str(precision).removeprefix("torch."),
        freeze=freeze,
        quantization=kind,
        tokens=tokens,
        chosen=len(lengths),
        width=width,
        k=k,
        tol=float(tol),
        device=found,
        memory=limit,
        weights=dict(weights.most_common()),
        resident_weights=resident,
        schedule=schedule,
        working=setting.working,
        joint=joint,
        every_token=setting.job("tokens", every, [max(lengths)] if every.method == "dense" else lengths),
        at_once=at_once,
        capture_seconds=capture_seconds(whole, weights, streamed, tokens, found),
        advice=changes,
    )


@dataclass(frozen=True)
class _Setting:
    """What all jobs on a network share: ``resident`` bytes of weights, the schedule of its factors, and the pace."""

    demand: Demand
    width: int
    resident: int
    schedule: Plan
    pace: Pace
    machine: Machine

    @property
    def factors(self) -> int:
        """Bytes of frozen factors that are there during a sweep."""
        return self.schedule.resident + self.schedule.staged

    @property
    def held(self) -> int:
        """Bytes that are there whatever is asked."""
        return self.resident + self.factors

    @property
    def working(self) -> int:
        """Bytes of a capture, or of a sweep of all positions, besides the factors."""
        return self.schedule.peak(self.width) - self.factors

    def peak(self, asked: int) -> int:
        """Bytes held at most by a job that takes so many for itself."""
        return self.held + max(self.working, asked)

    def job(self, name: str, asked: Asked, lengths: list[int]) -> Job:
        """Return a job on segments of these lengths, with its peak and its seconds."""
        columns = asked.row_sweeps / sum(map(self.demand.cost, lengths))
        seconds = self.pace.seconds(self.machine, self.schedule, lengths, columns, asked.passes)
        other = {"otherwise": self.peak(asked.otherwise) if asked.otherwise else None}
        return Job(name, **asked._asdict() | other, peak=self.peak(asked.bytes), seconds=seconds)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if not is_whole(value) or value < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, not {value!r}")


def _lengths(tokens: int, chosen: Any) -> list[int]:
    """Positions from each token that is asked about to the end of the prompt, the most first."""
    wanted = read_tokens_wanted(chosen)
    if wanted is None or isinstance(wanted, slice):
        wanted = list(range(tokens)[wanted or slice(None)])
    pairs = [token if isinstance(token, tuple) else (0, token) for token in wanted]
    if not pairs or not all(prompt == 0 and -tokens <= index < tokens for prompt, index in pairs):
        raise InputError(f"chosen must be some of the {tokens:,} tokens, from 0 or from the end, not {shown(chosen)}")
    return sorted((tokens - index % tokens for _, index in pairs), reverse=True)


def _check_sizes(model: Any, name: str, shape: NetworkShape, tokens: int, width: int, k: int) -> None:
    check_k([(shape.output_size, shape.embedding_size)], k)
    context = context_length_of(model)
    if context is not None and tokens > context:
        raise InputError(f"tokens must be {context:,} or fewer, as the context of {name}, not {tokens:,}")
    if width > shape.hidden_size:
        raise InputError(f"width must be {shape.hidden_size} or less, the width of the stream of {name}, not {width}")


def _other_ways(
    demand: Demand, model: Any, family: Family, kind: Quantization | None, stored: Quantization | None
) -> list[Otherwise]:
    """Return how else the weights could be held: packed if they are not, and if they are, as they are stored."""
    other: Quantization | None = "nf4" if kind is None else stored
    if other == kind:
        return []
    weights = weight_bytes(model, other)
    if kind is None:
        change, held = f"pack the weights (quantization {other})", weights.total()
    elif other is None:
        change = "leave the weights unpacked, so that they stream"
        held = _streaming(weights, _inside(model, family, None))
    else:
        change, held = f"leave the weights as they are stored (quantization {other})", weights.total()
    shape = replace(demand.shape, scratch=scratch(model, other))
    return [Otherwise(change, held, replace(demand, shape=shape))]


def _inside(model: Any, family: Family, kind: Quantization | None) -> list[int]:
    """Bytes of the weights of each block."""
    return [held.total() for held in weight_bytes_of(model, kind, family.blocks_of(model))]


def _streaming(weights: Counter[str], inside: list[int]) -> int:
    """Bytes of weights that are there at once where blocks stream: two blocks', and what is outside of them."""
    return min(weights.total(), weights.total() - sum(inside) + 2 * max(inside))


def _schedule(demand: Demand, tokens: int, width: int, limit: int, weights: int) -> Plan:
    """Return the cheapest schedule with which the joint job fits beside the weights; the smallest if none does."""
    kept, smallest = make_plan(demand.shape, [tokens], None, demand.rates), demand.smallest(tokens)
    if weights + demand.total(kept, width) <= limit:
        return kept
    least = demand.total(smallest, width)
    if weights + least > limit:
        return smallest
    budget = limit - weights - (least - smallest.resident)
    while budget > smallest.resident:
        made = make_plan(demand.shape, [tokens], budget, demand.rates)
        over = weights + demand.total(made, width) - limit
        if over <= 0:
            return made
        budget -= over  # what is made again in a sweep needs room there
    return smallest

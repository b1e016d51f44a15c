"""Memory and time of a job before it runs: from a configuration, the code that allocates, and a device's rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.peak import sweep_bytes
from detjac_lanczos.frozen.schedule import Plan, Rates, make_plan, read_memory
from detjac_lanczos.frozen.sizes import NetworkShape
from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.frozen.words.word import Way
from detjac_lanczos.models.outline import WEIGHTS_DECODED_AT_ONCE, outline, read_quantization, weight_bytes
from detjac_lanczos.runs.machines import Machine, machine
from detjac_lanczos.runs.plan_table import render
from detjac_lanczos.solvers.width import expected_columns

_JOINT = 1.4
"""Columns that the joint operator takes over those of one token's: 1.2 to 1.5 on SmolLM2, 16 to 128 tokens."""

_PASSES = 1.8
"""Passes over columns / width: blocks narrow when triplets are found, and tokens that are slow go on alone. Measured on
SmolLM2, as `_JOINT`: 15 to 22 passes where this gives 19."""

_FIRST_ROOM = 32
"""Vectors that each of the solver's bases has room for from the start; the room doubles."""


@dataclass(frozen=True)
class Job:
    """One way to ask: of all tokens side by side ("joint"), or of every token in lockstep ("tokens").

    ``rows`` of a full sweep, ``passes`` (sweeps one after another), ``row_sweeps`` in all, ``bytes`` of the rows and of
    the solver's bases, ``seconds`` of all sweeps.
    """

    name: str
    rows: int
    passes: int
    row_sweeps: float
    bytes: int
    seconds: float


@dataclass(frozen=True)
class JobPlan:
    """What a job will take; ``print`` shows it as a table.

    Attributes
    ----------
    model, dtype, freeze : str
    quantization : str or None
    tokens, width, k : int
    device : Machine
    memory : int or None
        Bytes that everything has to fit into.
    weights : mapping of str to int
        Bytes by precision; what is resident of them is `resident_weights`.
    resident_weights : int
        All of them, or two blocks' and what is outside the blocks where they have to stream.
    scratch : int
        Of packed weights that are decoded.
    schedule : Plan
        Of the frozen factors.
    working : int
        The forward pass, its self-check or the sweep of all positions, whichever is largest.
    joint, every_token : Job
    capture_seconds : float
    advice : tuple of str
        What to change where it does not fit; empty where it does.
    """

    model: str
    dtype: str
    freeze: str
    quantization: str | None
    tokens: int
    width: int
    k: int
    device: Machine
    memory: int | None
    weights: Mapping[str, int]
    resident_weights: int
    scratch: int
    schedule: Plan
    working: int
    joint: Job
    every_token: Job
    capture_seconds: float
    advice: tuple[str, ...]

    @property
    def streams_weights(self) -> bool:
        """Whether weights are read from host memory or disk in every sweep."""
        return self.resident_weights < sum(self.weights.values())

    @property
    def peak(self) -> int:
        """Bytes held at once at most, in the joint job."""
        return self.resident_weights + self.scratch + self.schedule.resident + max(self.working, self.joint.bytes)

    @property
    def fits(self) -> bool:
        """Whether the joint job fits."""
        return not self.advice

    @property
    def record(self) -> dict[str, Any]:
        """Everything as plain data."""
        plain = {
            key: getattr(self, key) for key in ("model", "dtype", "freeze", "quantization", "tokens", "width", "k")
        }
        return {
            **plain,
            "device": asdict(self.device),
            "memory": self.memory,
            "bytes": {
                "weights": dict(self.weights),
                "resident_weights": self.resident_weights,
                "scratch": self.scratch,
                "working": self.working,
                "peak": self.peak,
            },
            "schedule": self.schedule.record,
            "jobs": [asdict(self.joint), asdict(self.every_token)],
            "capture_seconds": self.capture_seconds,
            "fits": self.fits,
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        """Return the table that ``detjac plan`` prints."""
        return render(self)


def plan(
    model: Any,
    tokens: int,
    *,
    width: int = 4,
    k: int = 8,
    tol: float = 1e-3,
    device: str = "cpu",
    memory: int | str | None = None,
    quantization: str | None = None,
    dtype: str | torch.dtype = "auto",
    freeze: Freeze = "gate",
) -> JobPlan:
    """Predict memory and time of a job from a configuration alone.

    Parameters
    ----------
    model : str, path or transformers configuration
        An embedded name, a hub id, a ``.gguf`` file, or a folder with a ``config.json``; no weights are needed.
    tokens : int
        Length of the prompt.
    width : int
        Columns of a block of the solver.
    k, tol : int, float
        As in `svd`; how many sweeps that takes is a fit to SmolLM2, so other models may differ.
    device : {"h100", "h200", "a100", "cpu"}
        "cpu" is measured on the spot.
    memory : int or str, optional
        Bytes, or "40GiB", for everything, weights included; by default the device's.
    quantization : {"nf4", "nf4-double", "fp4", "fp4-double", "int8", "mxfp4"}, optional
        As bitsandbytes packs; by default what the configuration says.
    dtype : str or torch.dtype
        As in `load_model`.
    freeze : {"gate", "up", "half"}

    Returns
    -------
    JobPlan

    Raises
    ------
    InputError
        If an argument makes no sense.
    UnsupportedModelError
        If no family declares the model.
    """
    for name, value in {"tokens": tokens, "width": width, "k": k}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, not {value!r}")
    found = machine(device)
    whole, name, stored = outline(model, dtype)
    kind = read_quantization(quantization) or stored
    shape = family_of(whole).shape(whole, freeze)
    weights = weight_bytes(whole, kind)
    limit = read_memory(memory) or found.memory
    scratch = WEIGHTS_DECODED_AT_ONCE * shape.wide if kind else 0
    columns = partial(expected_columns, k, tol, width)
    kept = make_plan(shape, [tokens], None)

    resident = sum(weights.values())
    elsewhere: tuple[Way, ...] = tuple("offload" for _ in shape.blocks)
    smallest = replace(kept, mixing=elsewhere, gates=elsewhere)
    outside, blocks = _inside_and_outside(whole, family_of(whole).blocks_of(whole), kind)
    bases = _bases(_JOINT * columns((shape.output_size, tokens * shape.embedding_size)), k, width, shape, 1, tokens)
    if limit is not None and resident + scratch + smallest.peak(width) + bases > limit:
        resident = min(resident, outside + 2 * max(blocks))
    streamed = sum(weights.values()) - resident
    schedule = _schedule(kept, smallest, limit, resident + scratch + bases, width, found)

    used = _weights_of_a_sweep(whole, shape)
    packed = 0.0 if kind is None else used
    per_weight = sum(blocks) / max(1, _count(family_of(whole).blocks_of(whole)))
    read = max(used * per_weight / found.bandwidth, streamed / found.link if streamed else 0.0) + packed / found.decode
    mixing = sum(2 * block.heads * block.head_dim for block in shape.blocks)
    extra = schedule.seconds_with(found.rates)

    def job(label: str, lengths: list[int], operators: int, span: int) -> Job:
        alone = columns((shape.output_size, span * shape.embedding_size))
        passes, count = round(_PASSES * alone / width) + 2, alone * (_JOINT if span > 1 else 1.0)
        share = [(length * (len(shape.blocks) - 1) + 1) / len(shape.blocks) for length in lengths]
        rows, sweeps = sum(lengths) * width, sum(share) * count
        flops = 2 * sum(length * count * (used + mixing * (length + 1) / 2) for length in lengths)
        held = sweep_bytes(shape, lengths, width, rebuilt=_rebuilt(schedule), lockstep=operators > 1)
        held += _bases(count, k, width, shape, operators, span)
        # Weights are read and coefficients made once a pass; a pass that has many rows hides the reading.
        seconds = passes * extra + max(passes * read, flops / found.flops)
        return Job(label, rows, passes, sweeps, held, seconds)

    joint = job("joint", [tokens], 1, tokens)
    every = job("tokens", list(range(tokens, 0, -1)), tokens, 1)
    parameters = sum(p.numel() for p in whole.parameters())
    capture = 2 * max(sum(weights.values()) / found.bandwidth, 2 * parameters * tokens / found.flops)
    capture += 2 * streamed / found.link if streamed else 0.0
    made = JobPlan(
        model=name,
        dtype=str(next(whole.parameters()).dtype).removeprefix("torch."),
        freeze=freeze,
        quantization=kind,
        tokens=tokens,
        width=width,
        k=k,
        device=found,
        memory=limit,
        weights=dict(weights.most_common()),
        resident_weights=resident,
        scratch=scratch,
        schedule=schedule,
        working=schedule.peak(width) - schedule.resident,
        joint=joint,
        every_token=every,
        capture_seconds=capture,
        advice=(),
    )
    return replace(made, advice=_advice(made))


def _schedule(kept: Plan, smallest: Plan, limit: int | None, taken: int, width: int, found: Machine) -> Plan:
    """Return the plan that `detach` makes when it is given what is left of the memory; the smallest if none fits."""
    if limit is None or taken + kept.peak(width) <= limit:
        return kept
    working = smallest.peak(width) - smallest.resident
    rates = Rates.of(torch.device("cpu" if found.memory is None else "cuda"))
    try:
        return make_plan(kept.shape, kept.lengths, max(1, limit - taken - working), rates)
    except InputError:
        return smallest


def _advice(plan: JobPlan) -> tuple[str, ...]:
    if plan.memory is None or plan.peak <= plan.memory:
        return ()
    advice = []
    over = plan.peak - plan.memory
    if plan.quantization is None and over < 0.7 * sum(plan.weights.values()):
        advice.append("pack the weights (quantization nf4)")
    room = plan.memory - plan.resident_weights - plan.scratch
    if room > 0:
        fewer = int(plan.tokens * room / (plan.peak - plan.resident_weights - plan.scratch))
        advice.append(f"give about {max(1, fewer)} tokens or fewer")
    if plan.width > 1:
        advice.append("take a narrower block (width 1)")
    advice.append(f"give {plan.peak / 1e9:.3g} GB of memory")
    return tuple(advice)


def _bases(columns: float, k: int, width: int, shape: NetworkShape, operators: int, span: int) -> int:
    """Bytes of the solver's bases with their products, of k Ritz triplets with theirs, and of the blocks at work."""
    pair = (shape.output_size + span * shape.embedding_size) * shape.wide
    room = _FIRST_ROOM
    while room < columns / 2:
        room *= 2
    return operators * (2 * room + 3 * k + 3 * width) * pair


def _inside_and_outside(whole: nn.Module, blocks: Any, kind: Any) -> tuple[int, list[int]]:
    inside = [sum(weight_bytes(block, kind).values()) for block in blocks]
    return sum(weight_bytes(whole, kind).values()) - sum(inside), inside


def _weights_of_a_sweep(whole: nn.Module, shape: NetworkShape) -> float:
    """Weights that a row meets: values, outputs, two matrices of each product; of experts two thirds of those used."""
    used = 0.0
    config = _text_config(whole)
    chosen = getattr(config, "num_experts_per_tok", 0) or 0
    for index, block in enumerate(shape.blocks):
        used += shape.hidden_size * block.head_dim * (block.heads + block.kv_heads)
        used += sum(2 * gate.inputs * gate.width for gate in block.gates)
        if not block.gates and chosen:
            module = family_of(whole).blocks_of(whole)[index]
            used += sum(p.numel() * chosen / p.shape[0] * 2 / 3 for p in module.parameters() if p.ndim == 3)
    return used


def _text_config(whole: Any) -> Any:
    return whole.config.get_text_config()


def _count(blocks: Any) -> int:
    return sum(parameter.numel() for block in blocks for parameter in block.parameters())


def _rebuilt(schedule: Plan) -> tuple[bool, bool]:
    return "rebuild" in schedule.mixing, "rebuild" in schedule.gates

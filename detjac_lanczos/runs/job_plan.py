"""What a job will take, as data and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from detjac_lanczos.budget import format_bytes
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.ways import KINDS
from detjac_lanczos.runs.machines import Machine

_LABEL, _DETAIL, _NUMBER, _COLUMN = 20, 20, 12, 14
_WIDTH = _LABEL + 5 * _COLUMN


@dataclass(frozen=True)
class Job:
    """One way to ask: of all tokens side by side ("joint"), or of each one chosen by itself ("tokens").

    Attributes
    ----------
    name : str
    method : {"lanczos", "dense"}
        That `auto` is expected to take.
    rows : int
        Of a full sweep.
    passes : int
        Sweeps one after another.
    row_sweeps : float
        In all.
    bytes : int
        Of the rows and of the search or the matrices.
    peak : int
        Bytes of everything, weights included.
    seconds : float
        Of all sweeps.
    otherwise : int or None
        The peak of the other method, where `auto` may find it as fast by its clock.
    """

    name: str
    method: str
    rows: int
    passes: int
    row_sweeps: float
    bytes: int
    peak: int
    seconds: float
    otherwise: int | None = None


@dataclass(frozen=True, repr=False)
class JobPlan:
    """What a job will take; ``print`` shows it as a table.

    Attributes
    ----------
    model, dtype, freeze : str
    quantization : str or None
    tokens, width, k : int
    chosen : int
        Tokens that are asked about one by one.
    tol : float
    device : Machine
    memory : int
        Bytes that everything has to fit into.
    weights : mapping of str to int
        Bytes by precision; what is resident of them is `resident_weights`.
    resident_weights : int
        All of them, or two blocks' and what is outside the blocks where they have to stream.
    schedule : Plan
        Of the frozen factors.
    working : int
        The forward pass, its self-check or the sweep of all positions, whichever is largest beside offloaded factors
        that are on the device; what packed weights are decoded in is part of it, and of the jobs.
    joint, every_token : Job
    at_once : int
        Tokens, the first ones, that fit where they are asked about together.
    capture_seconds : float
    advice : tuple of str
        What to change where it does not fit; empty where it does.
    """

    model: str
    dtype: str
    freeze: str
    quantization: str | None
    tokens: int
    chosen: int
    width: int
    k: int
    tol: float
    device: Machine
    memory: int
    weights: Mapping[str, int]
    resident_weights: int
    schedule: Plan
    working: int
    joint: Job
    every_token: Job
    at_once: int
    capture_seconds: float
    advice: tuple[str, ...]

    @property
    def streams_weights(self) -> bool:
        """Whether weights are read from host memory or disk in every sweep."""
        return self.resident_weights < sum(self.weights.values())

    @property
    def peak(self) -> int:
        """Bytes held at once at most, in the joint job."""
        return self.joint.peak

    @property
    def fits(self) -> bool:
        """Whether the joint job fits."""
        return not self.advice

    @property
    def record(self) -> dict[str, Any]:
        """Everything as plain data."""
        asked = ("model", "dtype", "freeze", "quantization", "tokens", "chosen", "width", "k", "tol")
        return {name: getattr(self, name) for name in asked} | {
            "device": asdict(self.device),
            "memory": self.memory,
            "bytes": {
                "weights": dict(self.weights),
                "resident_weights": self.resident_weights,
                "working": self.working,
                "peak": self.peak,
            },
            "schedule": self.schedule.record,
            "jobs": [asdict(self.joint), asdict(self.every_token)],
            "at_once": self.at_once,
            "capture_seconds": self.capture_seconds,
            "fits": self.fits,
            "advice": list(self.advice),
        }

    def __repr__(self) -> str:
        """One line: what was asked for, and whether it fits."""
        peak = f"peak {format_bytes(self.peak)} of {format_bytes(self.memory)}"
        verdict = "fits" if self.fits else "does not fit"
        return f"JobPlan({self.model!r}, {self.dtype}, tokens={self.tokens}, {self.device.name}, {peak}: {verdict})"

    def __str__(self) -> str:
        """Return the table that ``detjac plan`` prints."""
        return _table(self)


class _Unit(NamedTuple):
    """What a table counts bytes in."""

    name: str
    bytes: int

    def __call__(self, count: int) -> float:
        """Return bytes in this unit."""
        return count / self.bytes


def _table(plan: JobPlan) -> str:
    """Return what a job takes, kind by kind, and whether it fits."""
    packed = f" · {plan.quantization}" if plan.quantization else ""
    tokens = f"{plan.tokens:,} token{'s' if plan.tokens > 1 else ''}"
    search = f"width {plan.width} · k {plan.k} · tol {plan.tol:g}"
    asked = [f"{plan.model}{packed} · {plan.dtype} · {tokens} · {search}", plan.device.name]
    unit = _Unit("GiB", 1024**3) if plan.peak >= 1024**3 else _Unit("MiB", 1024**2)
    parts = [asked, _memory_lines(plan, unit), _work_lines(plan, unit), *([line] for line in _remarks(plan, unit))]
    return "\n\n".join("\n".join(part) for part in [*parts, [f"Rates: {plan.device.source}."]])


def _memory_lines(plan: JobPlan, unit: _Unit) -> list[str]:
    def row(label: str, detail: str, count: int, remark: str = "") -> str:
        return f"{label:<{_LABEL}}{detail:<{_DETAIL}}{unit(count):>{_NUMBER}.2f}   {remark}".rstrip()

    lines = [f"{'memory':<{_LABEL + _DETAIL}}{unit.name:>{_NUMBER}}", "─" * _WIDTH]
    for index, (precision, count) in enumerate(plan.weights.items()):
        lines.append(row("" if index else "weights", precision, count))
    if plan.streams_weights:
        lines.append(row("", "of these here", plan.resident_weights, "two blocks at a time; every sweep reads all"))
    schedule = plan.schedule
    record = schedule.record
    for kind in KINDS:
        if not record[kind]:
            continue
        ways, label = record[kind], "attention weights" if kind == "mixing" else kind
        here = schedule.bytes_of(kind, "keep") + schedule.bytes_of(kind, "rebuild")
        remark = "; ".join(f"{way} {blocks}" for way, blocks in ways.items())
        lines.append(row("" if lines[-1].startswith("coefficients") else "coefficients", label, here, remark))
    lines.append(row("", "norms and others", schedule.shape.rest(schedule.lengths)))
    if schedule.offloaded:
        lines.append(row("", "offloaded", schedule.offloaded, "not in the peak"))
    if schedule.staged:
        lines.append(row("", "of these here", schedule.staged, "two blocks at a time; every sweep reads all"))
    lines.append(row("streams", "of the forward pass", schedule.streams))
    lines.append(row("working set", "rows, bases, capture", max(plan.working, plan.joint.bytes)))
    peak, limit = _told_apart(unit(plan.peak), unit(plan.memory))
    verdict = f"of {limit}: {'fits' if plan.fits else 'does not fit'}"
    return [*lines, "─" * _WIDTH, f"{'peak':<{_LABEL + _DETAIL}}{peak:>{_NUMBER}}   {verdict}"]


def _work_lines(plan: JobPlan, unit: _Unit) -> list[str]:
    headings = ("rows a sweep", "passes", "row-sweeps", "seconds", f"peak {unit.name}")
    every = f"{_each(plan)}, dense" if plan.every_token.method == "dense" else _each(plan)
    return [
        f"{'work':<{_LABEL}}" + "".join(f"{heading:>{_COLUMN}}" for heading in headings),
        "─" * _WIDTH,
        _job_row("all tokens jointly", plan.joint, unit),
        _job_row(every, plan.every_token, unit),
        f"{'forward passes':<{_LABEL + 3 * _COLUMN}}{_seconds(plan.capture_seconds):>{_COLUMN}}",
    ]


def _remarks(plan: JobPlan, unit: _Unit) -> Iterator[str]:
    """Yield what the figures alone do not say: another method, what to change, more than one device."""
    every = plan.every_token
    if every.otherwise is not None:
        other = "Lanczos" if every.method == "dense" else "dense matrices"
        peak = f"{unit(every.otherwise):,.2f} {unit.name}"
        yield f"{_each(plan).capitalize()} by {other} may be as fast: then the peak is {peak}; `method` chooses."
    if plan.fits and plan.at_once < plan.chosen:
        yield f"{_each(plan).capitalize()} at once would take too much; {_fewer_at_once(plan.at_once)}."
    if plan.advice:
        yield f"To fit: {'; or '.join(plan.advice)}."
    if plan.peak > plan.device.memory and plan.fits:
        yield f"One device of this kind has {unit(plan.device.memory):,.2f} {unit.name}: it takes more than one."


def _each(plan: JobPlan) -> str:
    return "every token" if plan.chosen == plan.tokens else f"{plan.chosen:,} token{'s' if plan.chosen > 1 else ''}"


def _told_apart(peak: float, limit: float) -> tuple[str, str]:
    """Return both with as many decimals, two at least, as show which one is larger."""
    digits = next((n for n in range(2, 9) if f"{peak:.{n}f}" != f"{limit:.{n}f}"), 2)
    return f"{peak:.{digits}f}", f"{limit:.{digits}f}"


def _fewer_at_once(tokens: int) -> str:
    if not tokens:
        return "beside this schedule not even one fits: give more memory, or ask for all jointly"
    return f"ask about {tokens} at a time"


def _job_row(label: str, job: Job, unit: _Unit) -> str:
    peak = f"{unit(job.peak):,.2f}"
    cells = (f"{job.rows:,}", f"{job.passes}", f"{job.row_sweeps:,.0f}", _seconds(job.seconds), peak)
    return f"{label:<{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f}" if seconds < 100 else f"{seconds:,.0f}"

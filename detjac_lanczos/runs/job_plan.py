"""What a job will take, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.runs.machines import Machine
from detjac_lanczos.runs.plan_table import render


@dataclass(frozen=True)
class Job:
    """One way to ask: of all tokens side by side ("joint"), or of every token by itself ("tokens").

    ``method`` that `auto` is expected to take, "lanczos" or "dense", ``rows`` of a full sweep, ``passes`` (sweeps one
    after another), ``row_sweeps`` in all, ``bytes`` of the rows and of the search or the matrices, ``peak`` of
    everything, weights included, ``seconds`` of all sweeps. ``otherwise``: the peak of the other method, where `auto`
    may find it as fast by its clock.
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


@dataclass(frozen=True)
class JobPlan:
    """What a job will take; ``print`` shows it as a table.

    Attributes
    ----------
    model, dtype, freeze : str
    quantization : str or None
    tokens, width, k : int
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
        plain = {
            key: getattr(self, key)
            for key in ("model", "dtype", "freeze", "quantization", "tokens", "width", "k", "tol")
        }
        return {
            **plain,
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

    def __str__(self) -> str:
        """Return the table that ``detjac plan`` prints."""
        return render(self)

"""The records of bench/results that the page of figures is made from, each of the machine that the page calls it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detjac_lanczos.errors import InputError

RESULTS = Path(__file__).parent / "results"
RECORDS = {"Zen 5": "bench.json", "Zen 4": "bench-zen4.json", "Xeon": "bench-xeon.json"}
SWEEPS = "sweeps-xeon.json"
WIDENINGS = {1: "SmolLM2 (d = 576)", 2: "widened ×2 (d = 1152)", 4: "widened ×4 (d = 2304)"}
AUTOGRAD, DENSE = "ratio (a)", "ratio (a')"
MODELS = {"smollm2": "SmolLM2", "gemma3-270m": "Gemma 3 270m"}
MISSING = "–"

Record = dict[str, Any]


def read(file: str) -> Any:
    """Return a record of bench/results."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def of_machines() -> list[Record]:
    """Return the record of each machine."""
    return [measured_on(machine, file) for machine, file in RECORDS.items()]


def sweeps_of_two_blocks() -> Record:
    """Return the sweeps that were clocked where others were busy."""
    return measured_on("Xeon", SWEEPS)


def measured_on(machine: str, file: str) -> Record:
    """Return a record.

    Raises
    ------
    InputError
        If it is of another machine: the text of the page is about these three.
    """
    record: Record = read(file)
    if (found := record["machine"].get("name", "a processor that it does not name")) != machine:
        raise InputError(
            f"bench/results/{file} was measured on {found}, and the page's text is about a {machine}: put the record "
            "of that one back (detjac bench --out puts yours elsewhere)"
        )
    return record


def row_of(part: Sequence[Record], **where: Any) -> Record:
    """Return the row of a part that has these values; StopIteration if there is none, as of a road not taken."""
    return next(row for row in part if all(row[key] == value for key, value in where.items()))


def both_ways(row: Record) -> tuple[float, float]:
    """Return what a sweep takes of its GEMMs, forwards and transposed."""
    return row["forward_ratio"], row["transposed_ratio"]

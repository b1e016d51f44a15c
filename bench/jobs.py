"""Jobs against their plans: what a search on SmolLM2 allocates, from capture to results, ``python -m bench.jobs``.

Each row runs in a process of its own, and needs no more than a budget of threads: top 8 of every token, by the method
that the plan expects, or of all tokens side by side ("joint"), at every length and in every precision. Writes
bench/results/jobs.json row by row; with ``--resume`` rows that were measured stay, and their predictions are made anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

import detjac_lanczos as dl
from bench.allocations import with_peak
from bench.schedule import text_ids

MODEL, K, WIDTH = "smollm2", 8, 4
KINDS: dict[str, dict[str, str]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4": {"quantization": "nf4"},
    "int8": {"quantization": "int8"},
}
WAYS = ("joint", "tokens")
LENGTHS = (2, 4, 8, 16, 32, 48, 64)
RESULTS = Path(__file__).parent / "results" / "jobs.json"


def main() -> None:
    """Run the rows asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--one", action="store_true", help="print one row: the first of each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tokens, kinds, ways = (getattr(arguments, name).split(",") for name in ("tokens", "kinds", "ways"))
    if arguments.one:
        print(json.dumps(row(int(tokens[0]), kinds[0], ways[0])))
        return
    figures: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for kind, way, length in product(kinds, ways, tokens):
        name = f"{kind} {way} {length}"
        if arguments.resume and name in figures:
            figures[name]["predicted"], method = predicted(int(length), kind, way)
            assert method == figures[name]["method"], f"{name} is planned by another method; measure it again"
        else:
            command = [sys.executable, "-m", "bench.jobs", "--one", "--tokens", length, "--kinds", kind, "--ways", way]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures[name] = json.loads(out.splitlines()[-1])
        print(name, f"{figures[name]['predicted'] / figures[name]['measured']:.3f}", figures[name], flush=True)
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def predicted(tokens: int, kind: str, way: str) -> tuple[int, str]:
    """Return the bytes that the plan says, those of the weights apart, and the method it counts on."""
    plan = dl.plan(MODEL, tokens, k=K, width=WIDTH, device="h100", **KINDS[kind])
    job = plan.joint if way == "joint" else plan.every_token
    return job.peak - plan.resident_weights, job.method


def row(tokens: int, kind: str, way: str) -> dict[str, Any]:
    """Return what one job allocates at most, and what is predicted."""
    loaded = dl.load_model(MODEL, **KINDS[kind])
    ids = text_ids(loaded, tokens)
    expected, method = predicted(tokens, kind, way)

    def job() -> Any:
        network = dl.detach(loaded, input_ids=ids)
        operators = [network.jacobian("joint")] if way == "joint" else network.jacobians()
        return network, dl.svd_batch(operators, k=K, block=WIDTH if method == "lanczos" else None, method=method)

    (network, results), measured, _ = with_peak(job)
    passes = max(result.work.passes for result in results)
    return {
        "predicted": expected,
        "method": method,
        "measured": measured,
        "resident": network.plan.resident,
        "passes": passes,
        "status": sorted({result.status.value for result in results}),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()

"""The main job on models packed in NF4: what it allocates above the packed model, ``python -m bench.packed``.

SmolLM2 and Gemma 3 270m, quantised from the embedded weights; certified top 4 of every token of a short prompt, in a
process that has not met the model before. Writes bench/results/packed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import detjac_lanczos as dl
from bench.allocations import with_peak
from bench.real_jacobians import PROMPT
from detjac_lanczos.frozen.families import family_of

K, WIDTH = 4, 4
RESULTS = Path(__file__).parent / "results" / "packed.json"


def main() -> None:
    """Run each model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="smollm2,gemma3-270m")
    parser.add_argument("--one", metavar="MODEL", help="print one row")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(row(arguments.one)))
        return
    figures = {}
    for name in arguments.models.split(","):
        command = [sys.executable, "-m", "bench.packed", "--one", name]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        figures[name] = json.loads(found.splitlines()[-1])
        print(name, json.dumps(figures[name], indent=1), flush=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def row(name: str) -> dict[str, Any]:
    """Return bytes allocated by capture, self-check and search, beside what they are allowed to take."""
    loaded = dl.load_model(name, quantization="nf4")

    def job() -> Any:
        network = dl.detach(loaded, PROMPT)
        return network, dl.svd_batch(network.jacobians(), k=K, block=WIDTH, method="lanczos")

    (network, results), measured, _ = with_peak(job)
    tokens = network.lengths[0]
    plan = dl.plan(name, tokens, k=K, width=WIDTH, quantization="nf4", device="h100")
    block = max(
        sum(4 * m.out_features * m.in_features for m in block.modules() if hasattr(m, "out_features"))
        for block in family_of(loaded.model).blocks_of(loaded.model)
    )
    decoded = network.plan.shape.scratch
    held = network.plan.resident
    return {
        "tokens": tokens,
        "certificates": sorted({result.certificate.line for result in results}),
        "bytes": {
            "packed model": sum(plan.weights.values()),
            "above it, measured": measured,
            "above it, predicted": plan.every_token.peak - plan.resident_weights,
            "coefficients and streams": held,
            "one decoded block": block,
            "of which decoded at a time": decoded,
            "rows and bases, predicted": plan.every_token.bytes - decoded,
        },
        "measured over a block, coefficients and rows": measured / (block + held + plan.every_token.bytes - decoded),
    }


if __name__ == "__main__":
    main()

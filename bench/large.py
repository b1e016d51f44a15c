"""A Llama of the shapes of 70B with few blocks, packed in NF4 on a processor: ``python -m bench.large``.

Each row runs in a process of its own: random packed weights of true shapes (the vocabulary apart, which no sweep
meets), 8 tokens, certified top 4 of each in lockstep; what the library allocates, against `detjac_lanczos.plan`.
Writes bench/results/large.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

import detjac_lanczos as dl
from bench.allocations import with_peak
from bench.gpu.packed import random_llama
from bench.spiked import spiked_matrix

TOKENS, WIDTH, K, TOL = 8, 4, 4, 1e-3
VOCABULARY = 4096
TOP = Path(__file__).parent
RESULTS = TOP / "results" / "large.json"


def main() -> None:
    """Run the rows asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", default="2,4")
    parser.add_argument("--one", type=int, metavar="BLOCKS", help="print one row")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(row(arguments.one)))
        return
    figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    figures |= {"tokens": TOKENS, "width": WIDTH, "k": K, "tol": TOL, "plan of 80 blocks": whole()}
    for blocks in arguments.blocks.split(","):
        command = [sys.executable, "-m", "bench.large", "--one", blocks]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        figures.setdefault("rows", {})[blocks] = json.loads(found.splitlines()[-1])
        print(json.dumps(figures["rows"][blocks], indent=1), flush=True)
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def shape(blocks: int) -> LlamaConfig:
    """Return the configuration of Llama 3.3 70B with few blocks and a small vocabulary, in float32."""
    config = LlamaConfig.from_pretrained(TOP / "shapes" / "llama-3.3-70b")
    config.num_hidden_layers, config.vocab_size, config.dtype = blocks, VOCABULARY, torch.float32
    config.bos_token_id = config.eos_token_id = None
    return config


def row(blocks: int, config: LlamaConfig | None = None) -> dict[str, Any]:
    """Return what one job took, beside what was predicted; bytes of the weights and of everything else."""
    torch.manual_seed(blocks)
    began = time.process_time()
    model = random_llama(config or shape(blocks), torch.device("cpu"), spiked_matrix)
    built = time.process_time() - began
    ids = torch.randint(0, VOCABULARY, (TOKENS,)).tolist()
    plan = dl.plan(
        model.config, TOKENS, device="h100", width=WIDTH, k=K, tol=TOL, dtype="float32", quantization="nf4-double"
    )
    weights = sum(plan.weights.values())
    predicted = plan.every_token.peak - plan.resident_weights
    taken = {}

    def job() -> Any:
        began = time.process_time()
        network = dl.detach((model, None), input_ids=ids)
        taken["detach"] = time.process_time() - began
        results = dl.svd_batch(network.jacobians(), k=K, tol=TOL, block=WIDTH, method="lanczos", callback=_tell)
        taken["search"] = time.process_time() - began - taken["detach"]
        return network.reconstruction.relative_error, results

    (reconstruction, results), measured, _ = with_peak(job)
    return {
        "reconstruction": reconstruction,
        "status": sorted({result.status.value for result in results}),
        "certificates": sorted({result.certificate.line for result in results}),
        "largest relative residual": max(float(result.relative.max()) for result in results),
        "singular values": [[round(float(value), 4) for value in result.S] for result in results],
        "passes": max(result.work.passes for result in results),
        "row-sweeps": sum(result.work.row_sweeps for result in results),
        "row-sweeps, predicted": plan.every_token.row_sweeps,
        "bytes": {"weights": weights, "others, predicted": predicted, "others, measured": measured},
        "ratio of the others": predicted / measured,
        "ratio with the weights": (weights + predicted) / (weights + measured),
        "CPU seconds": {"build": built, **taken},
        "threads": torch.get_num_threads(),
    }


def _tell(progress: Any) -> None:
    print(f"pass {progress.passes}: {progress.finished} of {progress.operators} tokens", file=sys.stderr, flush=True)


def whole() -> dict[str, Any]:
    """Return the plan of all 80 blocks on one H100: bytes of weights, coefficients and rows, and of the peak."""
    plan = dl.plan(TOP / "shapes" / "llama-3.3-70b", TOKENS, device="h100", quantization="nf4-double", width=WIDTH, k=K)
    return {
        "weights": dict(plan.weights),
        "coefficients and streams": plan.schedule.resident,
        "rows and bases of every token": plan.every_token.bytes,
        "peak": plan.peak,
        "fits": plan.fits,
        "table": str(plan).splitlines(),
    }


if __name__ == "__main__":
    main()

"""Verify every kernel on this machine's CUDA device, time it, and run the 8-token job on a Llama of 70B in NF4.

``python -m bench.gpu`` writes bench/results/gpu.json and docs/gpu.md in under 8 minutes; ``--dry`` runs the same on a
CPU at small sizes, with the kernels in Triton's interpreter. It exits with 1 if a kernel disagrees with its twin or
the job breaks off.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Run all parts, write the figures after each, and the page at the end."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="small sizes on the CPU, kernels in Triton's interpreter")
    parser.add_argument("--json", type=Path, default=Path("bench/results/gpu.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/gpu.md"))
    arguments = parser.parse_args(argv)
    if arguments.dry:
        # Read by Triton when a kernel is defined, so before any is imported.
        os.environ["TRITON_INTERPRET"] = "1"
    return run(arguments.dry, arguments.json, arguments.page)


def run(dry: bool, figures_path: Path, page_path: Path) -> int:
    """Import what needs the environment settled, and run."""
    import torch

    if not dry and not torch.cuda.is_available():
        print("no CUDA device here; python -m bench.gpu --dry runs on a CPU", file=sys.stderr)
        return 2
    from bench.gpu import job, products, rates, verify
    from bench.gpu.page import page
    from bench.gpu.sizes import sizes
    from detjac_kernels import packed_roads
    from detjac_lanczos import DetjacError

    begun = time.perf_counter()
    size = sizes(dry)
    figures: dict[str, Any] = {"dry": dry, "machine": machine(size.device)}

    def save(name: str, value: Any) -> None:
        figures[name] = value
        figures["seconds"] = time.perf_counter() - begun
        figures_path.parent.mkdir(parents=True, exist_ok=True)
        figures_path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        print(f"{figures['seconds']:6.1f} s  {name}", flush=True)

    # In the interpreter bfloat16 is wrong (its products multiply bit patterns): there float32 has to do.
    save("verified", verify.verify(size, (torch.float32,) if dry else (torch.float32, torch.bfloat16)))
    found = rates.measure(size)
    save("rates", asdict(found))
    table = products.times(size, found)
    save("products", table)
    totals = products.sums(table, size.layers)
    save("sweeps", totals)
    save("break-even rows", products.break_even(totals))
    if size.device.type == "cuda":
        torch.cuda.empty_cache()
    row: dict[str, Any] = {}
    try:
        job.job(row, size, found)
    except (DetjacError, RuntimeError) as error:
        # What was found about the kernels before is worth keeping; the exit code tells.
        row["broken off"] = f"{type(error).__name__}: {error}"
    save("job", row)
    save("roads", packed_roads.choices())
    save("measured roads", packed_roads.TABLE.seconds())
    text = page(figures)
    page_path.parent.mkdir(parents=True, exist_ok=True)
    page_path.write_text(text)
    print(text)
    print(f"written: {figures_path}, {page_path}")
    passed = all(row["passed"] for row in figures["verified"])
    return 0 if passed and "broken off" not in figures["job"] else 1


def machine(device: Any) -> dict[str, Any]:
    """Return what the figures belong to."""
    import bitsandbytes
    import torch
    import transformers
    import triton

    versions = {m.__name__: m.__version__ for m in (torch, triton, transformers, bitsandbytes)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    return {"device": name, "versions": versions}


if __name__ == "__main__":
    sys.exit(main())

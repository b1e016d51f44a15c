"""Verify every kernel on this machine's CUDA device, time it, and run the 8-token job on a Llama of 70B in NF4.

``python -m bench.gpu`` writes bench/results/gpu.json and docs/gpu.md in under 8 minutes; ``--dry`` runs the same on a
CPU at small sizes, with the kernels in Triton's interpreter, and writes nothing unless told where. It exits with 1 if a
kernel disagrees with its twin, anything could not be timed, or the job breaks off; a kernel that fails costs its own
figures alone.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

FIGURES, PAGE = Path("bench/results/gpu.json"), Path("docs/gpu.md")


def main(argv: list[str] | None = None) -> int:
    """Run all parts, write the figures after each, and the page at the end."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="small sizes on the CPU, kernels in Triton's interpreter")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {FIGURES}; dry: nowhere)")
    parser.add_argument("--page", type=Path, help=f"where to write the page (default: {PAGE}; dry: nowhere)")
    arguments = parser.parse_args(argv)
    if arguments.dry:
        # Read by Triton when a kernel is defined, so before any is imported.
        os.environ["TRITON_INTERPRET"] = "1"
        return run(True, arguments.json, arguments.page)
    return run(False, arguments.json or FIGURES, arguments.page or PAGE)


def run(dry: bool, figures_path: Path | None, page_path: Path | None) -> int:
    """Import what needs the environment settled, and run."""
    import torch

    if not dry and not torch.cuda.is_available():
        print("no CUDA device here; python -m bench.gpu --dry runs on a CPU", file=sys.stderr)
        return 2
    from bench.gpu import job, neighbours, products, rates, verify
    from bench.gpu.page import page
    from bench.gpu.sizes import sizes
    from detjac_kernels import mixing_roads, packed_roads
    from detjac_kernels.choice import sentence

    for roads in (packed_roads, mixing_roads):  # what earlier processes measured is not measured here
        patch.object(roads, "kept_choices", return_value=None).start()
    begun = time.perf_counter()
    size = sizes(dry)
    figures: dict[str, Any] = {"dry": dry, "machine": machine(size.device)}

    def save(name: str, value: Any) -> None:
        figures[name] = value
        figures["seconds"] = time.perf_counter() - begun
        write(figures_path, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        print(f"{figures['seconds']:6.1f} s  {name}", flush=True)

    # In the interpreter bfloat16 is wrong (its products multiply bit patterns): there the others have to do.
    dtypes = (torch.float32, torch.float16) if dry else (torch.float32, torch.bfloat16, torch.float16)
    save("verified", verify.verify(size, dtypes))
    found = rates.measure(size)
    save("rates", asdict(found))
    timed = products.times(size, found)
    save("products", timed)
    totals = products.sums(timed, size.layers)
    save("sweeps", totals)
    save("break-even rows", products.break_even(totals))
    save("neighbours", neighbours.times(size, found))
    if size.device.type == "cuda":
        torch.cuda.empty_cache()
    row: dict[str, Any] = {}
    try:
        job.job(row, size, found)
    except Exception as error:  # What was found before is worth keeping; the exit code tells.
        row["broken off"] = sentence(error)
    save("job", row)
    for name, table in {"4-bit products": packed_roads.TABLE, "mixing": mixing_roads.TABLE}.items():
        made = {"chosen": table.choices(), "seconds": table.seconds(), "left out": table.failures()}
        save(f"roads of {name}", made)
    text = page(figures)
    write(page_path, text)
    print(text)
    written = [str(path) for path in (figures_path, page_path) if path is not None]
    print(f"written: {', '.join(written) or 'nothing'}")
    return 0 if succeeded(figures) else 1


def write(path: Path | None, text: str) -> None:
    """Write a file that was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def succeeded(figures: Mapping[str, Any]) -> bool:
    """Tell whether every kernel agreed with its twin, everything could be timed, and the job came to its end."""
    timed = [*figures["products"], *figures["neighbours"], figures["job"]]
    passed = all(row["passed"] for row in figures["verified"])
    return passed and "broken off" not in figures["job"] and not any("errors" in row for row in timed)


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

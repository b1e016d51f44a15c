"""Compile every device kernel ahead of time for sm_80 and sm_90, hold it to its limits, and write docs/kernels.md.

``python -m bench.kernels`` needs no device. It exits with 1 if a limit is broken.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import triton

from bench.kernels.limits import PER_WEIGHT, REGISTERS, SHARED, SHARED_AMPERE, broken, per_weight
from bench.kernels.resources import Resources
from bench.kernels.shipped import Case, compile_all, sources_digest

PAGE = Path("docs/kernels.md")
FIGURES = Path("bench/results/kernels.json")


def main() -> int:
    """Compile, print what is broken, write the page and the figures."""
    found = compile_all()
    wrong = [sentence for case, resources in found for sentence in broken(case, resources)]
    print("\n".join(wrong) or f"{len(found)} kernels within their limits")
    rows = [
        {"kernel": case.kernel, "architecture": case.architecture, "configuration": case.what}
        | asdict(resources)
        | ({"instructions per weight": round(per_weight(case, resources), 2)} if case.weights else {})
        for case, resources in found
    ]
    figures = {"triton": triton.__version__, "sources": sources_digest(), "kernels": rows}
    FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(found))
    print(f"written: {PAGE}, {FIGURES}")
    return 1 if wrong else 0


def page(found: list[tuple[Case, Resources]]) -> str:
    """Return the table as Markdown."""
    exact, pairs = PER_WEIGHT["exact"], PER_WEIGHT["pairs"]
    lines = [
        "# The device kernels, compiled ahead of time",
        "",
        f"Written by `python -m bench.kernels` with Triton {triton.__version__}: every configuration that is shipped,",
        "with all its prologues and epilogues on; scales are quantised themselves where it does not say plain, tiles",
        "divide the matrix where it does not say ragged. Nothing here was timed. The tests hold the table to the",
        "sources that it was made of, compile all but its variations anew, and hold each line to: no",
        f"spills, at most {REGISTERS} registers, {SHARED:,} bytes of shared memory ({SHARED_AMPERE:,} on sm_80), wgmma",
        "on sm_90 where a tile has 64 rows or more, and thread-instructions of the main loop per decoded weight",
        f"(products, loads and scaling included) of at most {exact:.0f} for the exact table, {pairs:.0f} for the pair",
        "table.",
        "",
        "Tiles are rows × output columns × reduction. The pair table looks both codes of a byte up at once and rounds",
        "them to bfloat16 before they are scaled: 2e-3 of a product at most. On sm_80 the columns of more than 16 rows",
        "are scaled in a pass before the product; on sm_90 those of more than 64.",
        "",
        "The capture pass does not call the two capture kernels: it observes the model's own modules, whose roundings",
        "in half precision (Llama's norm rounds before it multiplies by its weight, its MLP before it multiplies by",
        "the up rows) a kernel that rounds once cannot repeat bit for bit.",
        "",
        "| kernel | sm | configuration | registers | spilled | shared | wgmma / mma | loop | per weight |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, r in found:
        cost = f"{per_weight(case, r):.2f}" if case.weights else ""
        lines.append(
            f"| {case.kernel} | {case.architecture} | {case.what} | {r.registers} | {r.spilled} | {r.shared:,} "
            f"| {r.products['wgmma']} / {r.products['mma']} | {r.loop} | {cost} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

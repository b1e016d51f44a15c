"""The figures as a page: prediction beside measurement."""

from typing import Any

from bench.gpu.products import ROADS
from bench.gpu.timing import Row

PREDICTED = (
    ("26 sweeps of 32 rows, fused, seconds", "26 sweeps, fused", "≤ 0.8 (0.29 ideal, 0.5 expected)"),
    (
        "26 sweeps of 32 rows, dequantise + GEMM, seconds",
        "26 sweeps, dequantise + GEMM",
        "≤ 2.5 (1.7 to 2.1 expected)",
    ),
    ("26 sweeps of 32 rows, the same in cached parts, seconds", "26 sweeps, cached parts", "less than that"),
    ("26 sweeps of 32 rows, measured choice, seconds", "26 sweeps, measured choice", "the smaller of both"),
    ("26 sweeps, floor of this machine, seconds", "26 sweeps, floor", "0.29 on an H100"),
)
"""For one H100 and 80 blocks of 8192; made from counted instructions and documented rates before any was run."""


MEASURED = (
    "26 sweeps, torch twin",
    "seconds, building",
    "seconds, detach",
    "seconds, top 4 of every token",
    "row-sweeps",
    "largest residual",
)
"""What nothing was predicted for."""


def page(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [f"# The kernels and the large job on {figures['machine']['device']}", ""]
    if figures["dry"]:
        lines += ["A dry run: small sizes on a CPU, kernels in Triton's interpreter. Its times mean nothing.", ""]
    checked = figures["verified"]
    failed = [row for row in checked if not row["passed"]]
    lines += [f"{len(checked) - len(failed)} of {len(checked)} comparisons with a torch twin passed.", ""]
    lines += [f"- FAILED: {row['what']}, {row['dtype']}: {_why(row)}" for row in failed]
    rates = figures["rates"]
    lines += [f"Measured: {rates['bytes'] / 1e9:.0f} GB/s, {rates['flops'] / 1e12:.1f} TFLOP/s.", ""]
    names = (*ROADS, "floor, fused", "floor, dequantised")
    lines += [
        "Milliseconds of the 4-bit products of one sweep, mean of both directions:",
        "",
        f"| rows | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in figures["sweeps"]:
        lines.append(f"| {row['rows']} | " + " | ".join(milliseconds(row, name) for name in names) + " |")
    for row in figures["products"]:
        direction = "transposed" if row["transposed"] else "forwards"
        lines += _failures(f"{row['matrix']}, {direction}, {row['rows']} rows", row)
    even = figures["break-even rows"]
    found = "beyond the last" if even is None else f"{even:.0f}"
    lines += ["", f"Break-even of fused and dequantise + GEMM: {found} rows (predicted: near 1,000).", ""]
    lines += [
        f"Milliseconds of the other kernels, {figures['neighbours'][0]['positions']} positions:",
        "",
        "| kernel | floor | kernel | torch twin |",
        "|---|---|---|---|",
    ]
    for row in figures["neighbours"]:
        lines.append(
            f"| {row['what']} | " + " | ".join(milliseconds(row, n) for n in ("floor", "kernel", "twin")) + " |"
        )
    for row in figures["neighbours"]:
        lines += _failures(row["what"], row)
    lines.append("")
    job = figures["job"]
    if "broken off" in job:
        lines += [f"The job was BROKEN OFF: {job['broken off']}", ""]
    lines += ["| the job | predicted | measured |", "|---|---|---|"]
    for what, name, predicted in PREDICTED:
        lines.append(f"| {what} | {predicted} | {f'{job[name]:.3g}' if name in job else 'not measured'} |")
    planned, peak = (f"{job[name]:.4g}" if name in job else "not measured" for name in ("peak, planned GB", "peak, GB"))
    lines.append(f"| peak of device memory, GB | ≤ 45; the plan says {planned} | {peak} |")
    lines += [f"| {name} | | {job[name]:.3g} |" for name in MEASURED if name in job]
    lines += [f"| status | | {', '.join(sorted(set(job.get('status', ['not reached']))))} |"]
    graph = job.get("CUDA graph", {"left out": "not reached"})
    for name, value in graph.items():
        lines.append(f"| {name}, CUDA graph | | {value if isinstance(value, str) else f'{value:.3g}'} |")
    lines += _failures("the job", job)
    return "\n".join([*lines, "", f"In all {figures['seconds']:.0f} seconds.", ""])


def milliseconds(row: Row, name: str) -> str:
    """Return a cell: a time, or that there is none."""
    seconds = row.get(name)
    return "failed" if seconds is None else f"{1e3 * seconds:.2f}"


def _why(row: Row) -> str:
    """Return what is wrong with a comparison."""
    error = row.get("errors", {}).get("difference")
    return error or f"{row['difference']:.1e} > {row['bar']:.0e}"


def _failures(what: str, row: Row) -> list[str]:
    """Return a line for everything that a row could not measure."""
    return [f"- FAILED: {what}, {name}: {text}" for name, text in row.get("errors", {}).items()]

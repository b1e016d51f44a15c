"""The figures as a page: prediction beside measurement."""

from typing import Any

from bench.gpu.products import ROADS

PREDICTED = (
    ("26 sweeps of 32 rows, fused, seconds", "26 sweeps, fused", "≤ 0.8 (0.29 ideal, 0.5 expected)"),
    ("26 sweeps of 32 rows, dequantise + GEMM, seconds", "26 sweeps, dequantise", "≤ 2.5 (1.7 to 2.1 expected)"),
    ("26 sweeps of 32 rows, measured choice, seconds", "26 sweeps, measured choice", "the smaller of both"),
    ("26 sweeps, floor of this machine, seconds", "26 sweeps, floor", "0.29 on an H100"),
    ("peak of device memory, GB", "peak, GB", "≤ 45"),
)
"""For one H100 and 80 blocks of 8192; made from counted instructions and documented rates before any was run."""


MEASURED = ("seconds, building", "seconds, detach", "seconds, top 4 of every token", "row-sweeps", "largest residual")


def page(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [f"# The kernels and the large job on {figures['machine']['device']}", ""]
    if figures["dry"]:
        lines += ["A dry run: small sizes on a CPU, kernels in Triton's interpreter. Its times mean nothing.", ""]
    checked = figures["verified"]
    failed = [row for row in checked if not row["passed"]]
    lines += [f"{len(checked) - len(failed)} of {len(checked)} comparisons with a torch twin passed.", ""]
    lines += [f"- FAILED: {row['what']}, {row['dtype']}: {row['difference']:.1e} > {row['bar']:.0e}" for row in failed]
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
        lines.append(f"| {row['rows']} | " + " | ".join(f"{1e3 * row[name]:.2f}" for name in names) + " |")
    even = figures["break-even rows"]
    lines += [
        "",
        f"Break-even of fused and dequantise + GEMM: {even or 'beyond the last'} rows (predicted: near 1,000).",
        "",
    ]
    job = figures["job"]
    if "broken off" in job:
        lines += [f"The job was BROKEN OFF: {job['broken off']}", ""]
    lines += ["| the job | predicted | measured |", "|---|---|---|"]
    for what, name, predicted in PREDICTED:
        lines.append(f"| {what} | {predicted} | {f'{job[name]:.3g}' if name in job else 'not measured'} |")
    lines += [f"| {name} | | {job[name]:.3g} |" for name in MEASURED if name in job]
    lines += [f"| status | | {', '.join(sorted(set(job.get('status', ['not reached']))))} |"]
    graph = job.get("CUDA graph", {"left out": "not reached"})
    for name, value in graph.items():
        lines.append(f"| {name}, CUDA graph | | {value if isinstance(value, str) else f'{value:.3g}'} |")
    return "\n".join([*lines, "", f"In all {figures['seconds']:.0f} seconds.", ""])

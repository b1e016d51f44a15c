"""The table of a plan, for terminals and logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detjac_lanczos.frozen.ways import KINDS

if TYPE_CHECKING:
    from detjac_lanczos.runs.job_plan import Job, JobPlan

_LABEL, _DETAIL, _NUMBER, _COLUMN = 20, 20, 12, 14
_WIDTH = _LABEL + 5 * _COLUMN


def render(plan: JobPlan) -> str:
    """Return what a job takes, kind by kind, and whether it fits."""
    packed = f" · {plan.quantization}" if plan.quantization else ""
    tokens = f"{plan.tokens:,} token{'s' if plan.tokens > 1 else ''}"
    search = f"width {plan.width} · k {plan.k} · tol {plan.tol:g}"
    lines = [f"{plan.model}{packed} · {plan.dtype} · {tokens} · {search}", plan.device.name, ""]
    unit, scale = ("GiB", 1024**3) if plan.peak >= 1024**3 else ("MiB", 1024**2)

    def row(label: str, detail: str, count: int, remark: str = "") -> str:
        return f"{label:<{_LABEL}}{detail:<{_DETAIL}}{count / scale:>{_NUMBER}.2f}   {remark}".rstrip()

    lines += [f"{'memory':<{_LABEL + _DETAIL}}{unit:>{_NUMBER}}", "─" * _WIDTH]
    for index, (precision, count) in enumerate(plan.weights.items()):
        lines.append(row("" if index else "weights", precision, count))
    if plan.streams_weights:
        lines.append(row("", "of these here", plan.resident_weights, "two blocks at a time; every sweep reads all"))
    schedule = plan.schedule
    record = schedule.record
    for kind in KINDS:
        if not record[kind]:
            continue
        ways, label = record[kind], "attention weights" if kind == "mixing" else kind
        here = schedule.bytes_of(kind, "keep") + schedule.bytes_of(kind, "rebuild")
        remark = "; ".join(f"{way} {blocks}" for way, blocks in ways.items())
        lines.append(row("" if lines[-1].startswith("coefficients") else "coefficients", label, here, remark))
    lines.append(row("", "norms and others", schedule.shape.rest(schedule.lengths)))
    if schedule.offloaded:
        lines.append(row("", "offloaded", schedule.offloaded, "not in the peak"))
    if schedule.staged:
        lines.append(row("", "of these here", schedule.staged, "two blocks at a time; every sweep reads all"))
    lines.append(row("streams", "of the forward pass", schedule.streams))
    lines.append(row("working set", "rows, bases, capture", max(plan.working, plan.joint.bytes)))
    peak, limit = _told_apart(plan.peak / scale, plan.memory / scale)
    verdict = f"of {limit}: {'fits' if plan.fits else 'does not fit'}"
    lines += ["─" * _WIDTH, f"{'peak':<{_LABEL + _DETAIL}}{peak:>{_NUMBER}}   {verdict}", ""]
    headings = ("rows a sweep", "passes", "row-sweeps", "seconds", f"peak {unit}")
    lines += [f"{'work':<{_LABEL}}" + "".join(f"{heading:>{_COLUMN}}" for heading in headings), "─" * _WIDTH]
    every = "every token, dense" if plan.every_token.method == "dense" else "every token"
    lines += [_work("all tokens jointly", plan.joint, scale), _work(every, plan.every_token, scale)]
    lines.append(f"{'forward passes':<{_LABEL + 3 * _COLUMN}}{_seconds(plan.capture_seconds):>{_COLUMN}}")
    if plan.every_token.otherwise is not None:
        other = "Lanczos" if plan.every_token.method == "dense" else "dense matrices"
        peak = f"{plan.every_token.otherwise / scale:,.2f} {unit}"
        lines += ["", f"Every token by {other} may be as fast: then the peak is {peak}; `method` chooses."]
    if plan.fits and plan.at_once < plan.tokens:
        lines += ["", f"Every token at once would take too much; {_fewer_at_once(plan.at_once)}."]
    if plan.advice:
        lines += ["", f"To fit: {'; or '.join(plan.advice)}."]
    if plan.peak > plan.device.memory and plan.fits:
        lines += ["", f"One device of this kind has {plan.device.memory / scale:,.2f} {unit}: it takes more than one."]
    return "\n".join([*lines, "", f"Rates: {plan.device.source}."])


def _told_apart(peak: float, limit: float) -> tuple[str, str]:
    """Return both with as many decimals, two at least, as show which one is larger."""
    digits = next((n for n in range(2, 9) if f"{peak:.{n}f}" != f"{limit:.{n}f}"), 2)
    return f"{peak:.{digits}f}", f"{limit:.{digits}f}"


def _fewer_at_once(tokens: int) -> str:
    if not tokens:
        return "beside this schedule not even one fits: give more memory, or ask for all jointly"
    return f"ask about {tokens} at a time"


def _work(label: str, job: Job, scale: int) -> str:
    peak = f"{job.peak / scale:,.2f}"
    cells = (f"{job.rows:,}", f"{job.passes}", f"{job.row_sweeps:,.0f}", _seconds(job.seconds), peak)
    return f"{label:<{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f}" if seconds < 100 else f"{seconds:,.0f}"

"""Results that can be kept, repeated and checked: analyze a prompt, save the run, load it, verify it.

Names are imported on first use: checking a folder before long work must cost neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detjac_lanczos.runs.analysis import analyze
    from detjac_lanczos.runs.claims import Claim, Verification
    from detjac_lanczos.runs.job_plan import Job, JobPlan
    from detjac_lanczos.runs.loading import load_run
    from detjac_lanczos.runs.planning import plan
    from detjac_lanczos.runs.progress import ProgressReporter
    from detjac_lanczos.runs.run import Run
    from detjac_lanczos.runs.token_result import DecodedVector, TokenResult
    from detjac_lanczos.runs.verification import verify

__all__ = [
    "Claim",
    "DecodedVector",
    "Job",
    "JobPlan",
    "ProgressReporter",
    "Run",
    "TokenResult",
    "Verification",
    "analyze",
    "load_run",
    "plan",
    "verify",
]

_MODULES = {
    "analysis": ("analyze",),
    "claims": ("Claim", "Verification"),
    "job_plan": ("Job", "JobPlan"),
    "loading": ("load_run",),
    "planning": ("plan",),
    "progress": ("ProgressReporter",),
    "run": ("Run",),
    "token_result": ("DecodedVector", "TokenResult"),
    "verification": ("verify",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

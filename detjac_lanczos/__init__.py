"""Certified singular vectors of the detached Jacobians of language models, matrix-free.

Public names are imported on first use, so that ``import detjac_lanczos`` costs neither torch nor transformers.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from detjac_lanczos._requirements import RequirementError, check_requirements
from detjac_lanczos.errors import DetjacError

if TYPE_CHECKING:
    from detjac_lanczos.models import LoadedModel, load_model
    from detjac_lanczos.operators import DetachedNetwork, attention, detach, expert, head, layer, mlp, probe
    from detjac_lanczos.runs import Run, analyze, load_run, plan
    from detjac_lanczos.solvers import SVDResult, check_operator, svd, svd_batch

__version__ = "0.1.0"

__all__ = [
    "DetachedNetwork",
    "DetjacError",
    "LoadedModel",
    "Run",
    "SVDResult",
    "__version__",
    "analyze",
    "attention",
    "check_operator",
    "detach",
    "expert",
    "head",
    "layer",
    "load_model",
    "load_run",
    "mlp",
    "plan",
    "probe",
    "svd",
    "svd_batch",
]

_ROOMS = {
    "models": ("LoadedModel", "load_model"),
    "operators": ("DetachedNetwork", "attention", "detach", "expert", "head", "layer", "mlp", "probe"),
    "solvers": ("SVDResult", "check_operator", "svd", "svd_batch"),
    "runs": ("Run", "analyze", "load_run", "plan"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

try:
    check_requirements()
except RequirementError as error:
    # `python -m detjac_lanczos` imports the package before its __main__, which cannot say it as the program does.
    if sys.argv[:1] != ["-m"] or __name__ not in sys.orig_argv:
        raise
    print(f"detjac: {error}", file=sys.stderr)
    sys.exit(2)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

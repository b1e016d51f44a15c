"""Peers at equal accuracy: products and sequential passes to a true residual, on real Jacobians and made-up spectra.

``python -m bench.peers`` writes ``bench/results/peers.json`` and ``docs/peers.md``. Matrices are held in memory and
taken as exact in float64; every product of every solver is counted where the matrix is multiplied. A peer's own
tolerance, or its number of iterations, is chosen in hindsight for each matrix: the cheapest on a grid that reaches the
true residual max_j max(‖A v - σ u‖, ‖Aᵀ u - σ v‖) / σ_j, with the right set of values.
Ours is told the tolerance and measures
itself.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cases import PLAIN
from bench.peer_solvers import Counted, K, solvers
from bench.peers_page import page, table
from bench.real_jacobians import MODELS, Widened, jacobians
from bench.spectral_operator import SpectralOperator
from detjac_lanczos import DetjacError
from detjac_lanczos.runs.folder import write_whole
from tests.solvers.spectra import spectrum

TOLERANCES = (1e-2, 1e-3, 1e-6)
RECORD = Path("bench/results/peers.json")
PAGE = Path("docs/peers.md")
_SIZE = 300
_DISTINCT = tuple(name for name in PLAIN if name not in ("multiple", "gap", "staircase", "graded"))
"""Synthetic spectra with the first K apart, so that every solver has a fair chance."""


def cheapest(matrix: Tensor, values: np.ndarray, tol: float, solver: Any) -> dict[str, float] | None:
    """Return products, passes and true residual of the first attempt that is accurate; None where none is."""
    counted = Counted(matrix)
    for u, s, v in solver(counted, tol):
        residual = true_residual(matrix.numpy(), u, s, v)
        if residual <= tol and np.abs(s / values[:K] - 1).max() <= tol:
            return {"products": counted.products, "passes": counted.passes, "residual": residual}
        counted.products = counted.passes = 0
    return None


def true_residual(A: np.ndarray, u: np.ndarray, s: np.ndarray, v: np.ndarray) -> float:
    """Return max_j max(‖A v - σ u‖, ‖Aᵀ u - σ v‖) / σ_j."""
    right, left = np.linalg.norm(A @ v - u * s, axis=0), np.linalg.norm(A.T @ u - v * s, axis=0)
    return float((np.maximum(right, left) / s).max())


def workloads() -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    """Yield matrices to solve, float64, by the name of their set: those of a real model by token."""
    for model in MODELS:
        yield model, lambda model=model: [matrix.double() for matrix in jacobians(model)]
    for model in MODELS:
        yield (
            f"{model}, widened ×2",
            lambda model=model: [_written_out(Widened(J.double(), 2)) for J in jacobians(model)],
        )
    yield (
        "synthetic",
        lambda: [
            _written_out(SpectralOperator(spectrum(name, _SIZE, K), (_SIZE, _SIZE), seed, torch.float64))
            for seed, name in enumerate(_DISTINCT)
        ],
    )


def _written_out(operator: Any) -> Tensor:
    written: Tensor = operator.matmat(torch.eye(operator.shape[1], dtype=torch.float64))
    return written


def main(argv: list[str] | None = None) -> int:
    """Count every solver on every matrix, print the tables, write the figures after each solver."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="sets whose names begin so; others keep their figures")
    parser.add_argument("--solvers", default="", help="solvers whose names begin so; others keep their figures")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, make in workloads():
        if not name.startswith(arguments.only):
            continue
        try:
            matrices = make()
        except DetjacError as error:
            print(f"{name} left out: {error}")
            continue
        values = [torch.linalg.svdvals(matrix).numpy() for matrix in matrices]
        tolerances = TOLERANCES if name in MODELS else TOLERANCES[1:2]
        known = figures.setdefault(name, {})
        for title, solver in solvers().items():
            if title.startswith(arguments.solvers):
                known[title] = {
                    f"{tol:g}": [cheapest(A, s, tol, solver) for A, s in zip(matrices, values, strict=True)]
                    for tol in tolerances
                }
                figures[name] = {title: known[title] for title in solvers() if title in known} | known
                write_whole(arguments.out, json.dumps(figures, indent=None, separators=(",", ":")) + "\n")
        print(table(figures[name], name), flush=True)
        write_whole(arguments.page, page(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

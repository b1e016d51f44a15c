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
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.coverage import PLAIN
from bench.peers_page import page, table
from bench.real_jacobians import MODELS, Widened, jacobians
from bench.spectral_operator import SpectralOperator
from detjac_lanczos import DetjacError
from detjac_lanczos.solvers import svd
from tests.solvers.spectra import spectrum

K = 8
TOLERANCES = (1e-2, 1e-3, 1e-6)
WIDTHS = (1, 2, 3, 4, 5, 8, 10)
RECORD = Path("bench/results/peers.json")
PAGE = Path("docs/peers.md")
_SIZE = 300
_DISTINCT = tuple(name for name in PLAIN if name not in ("multiple", "gap", "staircase", "graded"))
"""Synthetic spectra with the first K apart, so that every solver has a fair chance."""
_OWN_TOLERANCES = tuple(10.0 ** (-e / 2) for e in range(2, 29))
_SEED = 0

Found = tuple[np.ndarray, np.ndarray, np.ndarray]


class Counted:
    """A matrix that counts columns and calls, as an operator of ours and of scipy."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape = matrix, (matrix.shape[0], matrix.shape[1])
        self.dtype, self.device = matrix.dtype, matrix.device
        self.products = self.passes = 0

    def matmat(self, X: Tensor) -> Tensor:
        """(d_in, b) to (d_out, b)."""
        return self.matrix @ self._count(X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """(d_out, b) to (d_in, b)."""
        return self.matrix.T @ self._count(Y)

    def as_scipy(self) -> LinearOperator:
        """Return a scipy operator over the same counts."""

        def through(apply: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
            def call(X: Any) -> Any:
                block = torch.from_numpy(np.ascontiguousarray(X).reshape(X.shape[0], -1))
                return apply(block).numpy().reshape(-1, *X.shape[1:])

            return call

        forward, back = through(self.matmat), through(self.rmatmat)
        return LinearOperator(self.shape, matvec=forward, rmatvec=back, matmat=forward, rmatmat=back, dtype=np.float64)

    def _count(self, block: Tensor) -> Tensor:
        self.products += block.shape[1]
        self.passes += 1
        return block


class CountProducts(TorchDispatchMode):
    """Counts the products with one matrix inside a torch function, by its shape and memory."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted, self._place = counted, counted.matrix.untyped_storage().data_ptr()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            for one, other, axis in ((args[0], args[1], -1), (args[1], args[0], -2)):
                if one.untyped_storage().data_ptr() == self._place:
                    self.counted.products += other.shape[axis]
                    self.counted.passes += 1
        return function(*args, **(kwargs or {}))


def roads() -> dict[str, Callable[[Counted, float], Iterator[Found]]]:
    """Return every solver by name: from a counted matrix and a tolerance to attempts, cheapest first.

    An attempt's counts are those made since the one before.
    """
    found: dict[str, Callable[[Counted, float], Iterator[Found]]] = {f"ours, width {b}": _ours(b) for b in WIDTHS}
    found |= {f"scipy {solver}": _scipy(solver) for solver in ("propack", "arpack", "lobpcg")}
    found["torch svd_lowrank"] = _torch
    try:
        import primme
    except ImportError:
        print("primme is not installed: it is left out")
    else:
        found |= {f"PRIMME, block {b}": _primme(primme, b) for b in (1, 4)}
    try:
        from sklearn.utils.extmath import randomized_svd
    except ImportError:
        print("scikit-learn is not installed: its randomized_svd is left out")
    else:
        found["sklearn randomized_svd"] = _sklearn(randomized_svd)
    return found


def cheapest(matrix: Tensor, values: np.ndarray, tol: float, road: Any) -> dict[str, float] | None:
    """Return products, passes and true residual of the first attempt that is accurate; None where none is."""
    counted = Counted(matrix)
    for u, s, v in road(counted, tol):
        residual = true_residual(matrix.numpy(), u, s, v)
        if residual <= tol and np.abs(s / values[:K] - 1).max() <= tol:
            return {"products": counted.products, "passes": counted.passes, "residual": residual}
        counted.products = counted.passes = 0
    return None


def true_residual(A: np.ndarray, u: np.ndarray, s: np.ndarray, v: np.ndarray) -> float:
    """Return max_j max(‖A v - σ u‖, ‖Aᵀ u - σ v‖) / σ_j."""
    right, left = np.linalg.norm(A @ v - u * s, axis=0), np.linalg.norm(A.T @ u - v * s, axis=0)
    return float((np.maximum(right, left) / s).max())


def _ours(width: int) -> Callable[[Counted, float], Iterator[Found]]:
    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        result = svd(counted, K, tol=tol, method="lanczos", block=width, seed=_SEED)
        yield result.U.numpy(), result.S.numpy(), result.V.numpy()

    return attempts


def _scipy(solver: str) -> Callable[[Counted, float], Iterator[Found]]:
    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        for own in _OWN_TOLERANCES:
            # Passes are calls: ARPACK and PROPACK multiply one vector at a time, LOBPCG a block.
            rng = np.random.default_rng(_SEED)
            try:
                u, s, vt = svds(counted.as_scipy(), K, solver=solver, tol=own, maxiter=2000, rng=rng)
            except (np.linalg.LinAlgError, ArithmeticError, ValueError, RuntimeError):
                counted.products = counted.passes = 0
                continue
            order = np.argsort(-s)
            yield u[:, order], s[order], vt[order].T

    return attempts


def _torch(counted: Counted, tol: float) -> Iterator[Found]:
    for rounds in range(0, 60):
        torch.manual_seed(_SEED)
        with CountProducts(counted):
            u, s, v = torch.svd_lowrank(counted.matrix, q=2 * K, niter=rounds)
        yield u[:, :K].numpy(), s[:K].numpy(), v[:, :K].numpy()


def _sklearn(randomized_svd: Any) -> Callable[[Counted, float], Iterator[Found]]:
    """Count by its algorithm, since it copies what it is given: 2 K columns, n_iter rounds both ways, and once more."""

    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        for rounds in range(0, 60):
            options = {"n_oversamples": K, "n_iter": rounds, "flip_sign": False, "random_state": _SEED}
            u, s, vt = randomized_svd(counted.matrix.numpy(), K, **options)
            counted.passes = 2 * rounds + 2
            counted.products = 2 * K * counted.passes
            yield u, s, vt.T

    return attempts


def _primme(primme: Any, block: int) -> Callable[[Counted, float], Iterator[Found]]:
    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        for own in _OWN_TOLERANCES:
            try:
                u, s, vt = primme.svds(counted.as_scipy(), K, tol=own, maxBlockSize=block, maxiter=20000)
            except primme.PrimmeSvdsError:
                counted.products = counted.passes = 0
                continue
            order = np.argsort(-s)
            yield u[:, order], s[order], vt[order].T

    return attempts


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
    """Count every road on every matrix, print the tables, write the figures after each road."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="sets whose names begin so; others keep their figures")
    parser.add_argument("--roads", default="", help="roads whose names begin so; others keep their figures")
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
        for title, road in roads().items():
            if title.startswith(arguments.roads):
                known[title] = {
                    f"{tol:g}": [cheapest(A, s, tol, road) for A, s in zip(matrices, values, strict=True)]
                    for tol in tolerances
                }
                _write(arguments.out, json.dumps(figures, indent=None, separators=(",", ":")) + "\n")
        print(table(known, name), flush=True)
        _write(arguments.page, page(figures))
    return 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    os.replace(beside, path)


if __name__ == "__main__":
    sys.exit(main())

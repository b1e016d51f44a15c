"""Solvers to compare with, each as attempts on a matrix whose products are counted."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detjac_lanczos.solvers import svd

K = 8
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 11, 12)
_OWN_TOLERANCES = tuple(10.0 ** (-e / 2) for e in range(2, 29))
_SEED = 0

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
_MOST_STEPS = 200


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


Solvers = dict[str, Callable[[Counted, float], Iterator[Found]]]


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


def solvers() -> Solvers:
    """Return every solver by name: from a counted matrix and a tolerance to attempts, cheapest first.

    An attempt's counts are those made since the one before.
    """
    found: Solvers = {f"ours, width {b}": _ours(b) for b in WIDTHS}
    found |= {f"scipy {solver}": _scipy(solver) for solver in ("propack", "arpack", "lobpcg")}
    found["torch svd_lowrank"] = _torch
    for make in (_primme_solvers, _sklearn_solvers, _cola_solvers, _matfree_solvers):
        try:
            found |= make()
        except ImportError as error:
            print(f"left out: {error}; pip install '.[peers]'")
    return found


def _primme_solvers() -> Solvers:
    import primme

    return {f"PRIMME, block {b}": _primme(primme, b) for b in (1, 4)}


def _sklearn_solvers() -> Solvers:
    from sklearn.utils.extmath import randomized_svd

    return {"sklearn randomized_svd": _sklearn(randomized_svd)}


def _cola_solvers() -> Solvers:
    import cola
    from cola.linalg.decompositions.lanczos import lanczos_eigs

    return {"CoLA lanczos of AᵀA": _cola(cola, lanczos_eigs)}


def _matfree_solvers() -> Solvers:
    import jax
    from matfree import decomp

    jax.config.update("jax_enable_x64", True)
    return {"matfree bidiag": _matfree(jax, decomp)}


def _ours(width: int) -> Callable[[Counted, float], Iterator[Found]]:
    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        result = svd(counted, K, tol=tol, method="lanczos", block=width, seed=_SEED)
        yield result.U.numpy(), result.S.numpy(), result.V.numpy()

    return attempts


def _scipy(solver: str) -> Callable[[Counted, float], Iterator[Found]]:
    def solve(operator: LinearOperator, own: float) -> Any:
        # Passes are calls: ARPACK and PROPACK multiply one vector at a time, LOBPCG a block.
        return svds(operator, K, solver=solver, tol=own, maxiter=2000, rng=np.random.default_rng(_SEED))

    return _by_tolerances(solve, (np.linalg.LinAlgError, ArithmeticError, ValueError, RuntimeError))


def _by_tolerances(
    solve: Callable[[LinearOperator, float], Any], failures: type[Exception] | tuple[type[Exception], ...]
) -> Callable[[Counted, float], Iterator[Found]]:
    """Return attempts at ever finer tolerances of a solver's own; what it fails at is passed over."""

    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        for own in _OWN_TOLERANCES:
            try:
                u, s, vt = solve(counted.as_scipy(), own)
            except failures:
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
    def solve(operator: LinearOperator, own: float) -> Any:
        return primme.svds(operator, K, tol=own, maxBlockSize=block, maxiter=20000)

    return _by_tolerances(solve, primme.PrimmeSvdsError)


def _cola(cola: Any, lanczos_eigs: Any) -> Callable[[Counted, float], Iterator[Found]]:
    """Lanczos on AᵀA, then U = A V / σ: release 0.0.7 has no SVD, and this is the one of its repository."""

    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        width = counted.shape[1]
        start = torch.randn(width, dtype=counted.dtype, generator=torch.Generator().manual_seed(_SEED))
        gram = cola.ops.LinearOperator(
            counted.dtype, (width, width), matmat=lambda X: counted.rmatmat(counted.matmat(X))
        )
        for steps in range(K, min(_MOST_STEPS, width)):
            squares, vectors, _ = lanczos_eigs(cola.PSD(gram), start_vector=start, max_iters=steps, tol=1e-14)
            s, v = squares[-K:].flip(0).clamp_min(0.0).sqrt(), vectors.to_dense()[:, -K:].flip(1)
            yield (counted.matmat(v) / s).numpy(), s.numpy(), v.numpy()

    return attempts


def _matfree(jax: Any, decomp: Any) -> Callable[[Counted, float], Iterator[Found]]:
    """Count by its algorithm, one product each way a step: fewer steps are the leading part of a longer run.

    The SVD of the small matrix, as ``matfree.eig.svd_partial`` takes it, is taken of that part.
    """

    def attempts(counted: Counted, tol: float) -> Iterator[Found]:
        matrix = jax.numpy.asarray(counted.matrix.numpy())
        start = jax.numpy.asarray(np.random.default_rng(_SEED).standard_normal(counted.shape[1]))
        most = min(_MOST_STEPS, *counted.shape)
        (lefts, rights), small, *_ = jax.jit(lambda v: decomp.bidiag(most)(lambda x: matrix @ x, v))(start)
        left, right, bidiagonal = (np.asarray(part) for part in (lefts, rights, small))
        for steps in range(K, most):
            mix_left, s, mix_right = np.linalg.svd(bidiagonal[:steps, :steps])
            counted.products = counted.passes = 2 * steps
            yield left[:steps].T @ mix_left[:, :K], s[:K], right[:steps].T @ mix_right[:K].T

    return attempts

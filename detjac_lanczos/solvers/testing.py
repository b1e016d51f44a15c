"""A test case that every new operator inherits."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.solvers.check import check_operator
from detjac_lanczos.solvers.operator import LinearOperator, as_operator
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import LARGEST_ADJOINT_BOUND, adjoint_bound, epsilon, safe_scale
from detjac_lanczos.solvers.svd import svd


class OperatorTestCase(ABC):
    """The contract of a linear operator, tested against a matrix made in another way.

    Inherit it in a class that the test runner collects and define :meth:`create_operator` and :meth:`create_dense`.

    Examples
    --------
    >>> class TestMatrix(OperatorTestCase):
    ...     def create_operator(self):
    ...         return torch.eye(5)
    ...
    ...     def create_dense(self):
    ...         return torch.eye(5)
    >>> TestMatrix().test_products_match_the_dense_matrix()
    """

    widths: tuple[int, ...] = (1, 2, 5)

    @abstractmethod
    def create_operator(self) -> Any:
        """Return the operator under test: anything that ``as_operator`` takes."""

    @abstractmethod
    def create_dense(self) -> Tensor:
        """Return the same map as a matrix ``(d_out, d_in)``, made without the operator."""

    @property
    def tolerance(self) -> float:
        """The relative error that rounding allows, c ε √rows."""
        operator = self._operator()
        return adjoint_bound(epsilon(operator.dtype), max(operator.shape))

    def test_contract(self) -> None:
        """Shapes, finiteness, determinism, linearity and adjointness hold."""
        report = check_operator(self.create_operator())
        assert report.ok, str(report)

    def test_products_match_the_dense_matrix(self) -> None:
        """Blocks of every width are multiplied as the matrix multiplies them, both ways."""
        operator, dense = self._operator(), self._dense()
        assert tuple(operator.shape) == tuple(dense.shape)
        for width in self.widths:
            X, Y = self._random(operator.shape[1], width), self._random(operator.shape[0], width)
            self._assert_close(operator.matmat(X.clone()), dense @ X.to(torch.float64))
            self._assert_close(operator.rmatmat(Y.clone()), dense.T @ Y.to(torch.float64))

    def test_transposed_views_are_accepted(self) -> None:
        """A block may be a transposed view of rows."""
        operator = self._operator()
        for apply, rows in ((operator.matmat, operator.shape[1]), (operator.rmatmat, operator.shape[0])):
            block = self._random(rows, 3)
            plain = apply(block.clone()).to(torch.float64, copy=True)
            self._assert_close(apply(block.T.contiguous().T), plain)

    def test_singular_values_match_the_dense_matrix(self) -> None:
        """The leading values that the solver finds are those of the matrix, as far as its precision tells them."""
        operator, dense = self._operator(), self._dense()
        k = min(3, *dense.shape)
        tol = min(max(1e-6, 10 * self.tolerance), LARGEST_ADJOINT_BOUND)
        result = svd(operator, k, tol=tol, method="lanczos")
        assert result.converged or result.status is Status.NOISE_FLOOR, result.advice
        expected = torch.linalg.svdvals(dense)[:k]
        error = (result.S.to(device="cpu", dtype=torch.float64) - expected).abs().max()
        assert float(error) <= tol * float(expected[0]), f"{result.S} instead of {expected}"

    def _operator(self) -> LinearOperator:
        return as_operator(self.create_operator())

    def _dense(self) -> Tensor:
        return self.create_dense().to(device="cpu", dtype=torch.float64)

    def _random(self, rows: int, width: int) -> Tensor:
        operator = self._operator()
        generator = torch.Generator().manual_seed(rows + width)
        drawn = torch.randn(rows, width, dtype=torch.float64, device="cpu", generator=generator)
        return drawn.to(device=operator.device, dtype=operator.dtype)

    def _assert_close(self, found: Tensor, expected: Tensor) -> None:
        unit = safe_scale(expected)
        found, expected = found.to(device="cpu", dtype=torch.float64) * unit, expected.cpu() * unit
        error, allowed = float((found - expected).norm()), self.tolerance * float(expected.norm())
        assert error <= allowed, f"the product is {error / unit:.1e} off, rounding explains {allowed / unit:.1e}"

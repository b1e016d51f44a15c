"""Identities of the block Golub-Kahan state."""

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers.basis import complete_block, dominant_rows, orthonormal_rows
from detjac_lanczos.solvers.factorisation import Factorisation
from detjac_lanczos.solvers.operator import Direction
from tests.solvers.spectra import matrix, spectrum


def grown(A: torch.Tensor, passes: int, width: int = 2) -> Factorisation:
    """Return the state after so many passes of plain block Golub-Kahan."""
    state = Factorisation((A.shape[0], A.shape[1]), A.dtype, A.device)
    generator = torch.Generator().manual_seed(0)
    block = orthonormal_rows(torch.randn(width, A.shape[0], generator=generator, dtype=A.dtype))
    direction = Direction.TRANSPOSED
    for _ in range(passes):
        state.absorb(direction, block, block @ (A.T if direction is Direction.FORWARD else A))
        direction = direction.other
        basis = (state.V if direction is Direction.FORWARD else state.U).rows
        block = dominant_rows(state.outside(direction, width), width, 0.0)
        block = complete_block(block, basis, width, generator)
    return state


@pytest.mark.parametrize("passes", [2, 3, 8, 9, 40])
def test_stored_quantities_are_what_they_say(passes: int) -> None:
    A = matrix(spectrum("spike", 60), (80, 60))
    state = grown(A, passes)
    U, V = state.U.rows, state.V.rows
    close = {"rtol": 0, "atol": 1e-12 * float(torch.linalg.matrix_norm(A, 2))}
    torch.testing.assert_close(state.AV.rows, V @ A.T, **close)
    torch.testing.assert_close(state.AtU.rows, U @ A, **close)
    np.testing.assert_allclose(state.projected, (U @ A @ V.T).numpy(), atol=close["atol"])
    assert abs(U.shape[0] - V.shape[0]) == (2 if passes % 2 else 0)
    for basis in (U, V):
        identity = torch.eye(basis.shape[0], dtype=A.dtype)
        torch.testing.assert_close(basis @ basis.T, identity, rtol=0, atol=1e-14 * basis.shape[1])


@pytest.mark.parametrize("passes", [9, 10])
def test_one_residual_vanishes_and_the_other_is_true(passes: int) -> None:
    """A Krylov space holds one of A v - σ u and Aᵀ u - σ v; which one depends on the last pass."""
    A = matrix(spectrum("root", 50), (50, 70))
    ritz = grown(A, passes).ritz(4)
    sigma = torch.from_numpy(ritz.values)[:, None]
    right, left = ritz.right @ A.T - sigma * ritz.left, ritz.left @ A - sigma * ritz.right
    np.testing.assert_allclose(ritz.norms[:, 0], right.norm(dim=1).numpy(), atol=1e-13)
    np.testing.assert_allclose(ritz.norms[:, 1], left.norm(dim=1).numpy(), atol=1e-13)
    vanishing = 1 if passes % 2 == 0 else 0
    assert ritz.norms[:, vanishing].max() <= 1e-13
    assert ritz.norms[:, 1 - vanishing].max() > 1e-6


@pytest.mark.parametrize("name", ["geometric", "harmonic", "spike", "flat"])
def test_ritz_values_are_lower_bounds_that_only_rise(name: str) -> None:
    """Cauchy interlacing, for the singular values of Uᵀ A V."""
    A = matrix(spectrum(name, 40), (40, 40))
    exact = torch.linalg.svdvals(A).numpy()
    earlier = np.zeros(0)
    for passes in range(2, 20):
        values = grown(A, passes).ritz(40).values
        assert (values <= exact[: len(values)] + 1e-13 * exact[0]).all()
        assert (values[: len(earlier)] >= earlier - 1e-13 * exact[0]).all()
        earlier = values


def test_adjoint_defect_is_measured() -> None:
    A = matrix(spectrum("root", 30), (30, 30))
    assert grown(A, 6).adjoint_defect() <= 1e-13
    state = Factorisation((30, 30), A.dtype, A.device)
    generator = torch.Generator().manual_seed(0)
    cotangents = orthonormal_rows(torch.randn(2, 30, generator=generator, dtype=A.dtype))
    tangents = orthonormal_rows(cotangents @ A)
    state.absorb(Direction.TRANSPOSED, cotangents, cotangents @ A)
    state.absorb(Direction.FORWARD, tangents, tangents @ (1.01 * A).T)
    assert state.adjoint_defect() > 1e-4


def test_complete_block_fills_with_orthonormal_directions_and_stops_at_the_space() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = orthonormal_rows(torch.randn(7, 10, generator=generator, dtype=torch.float64))
    block = complete_block(torch.empty(0, 10, dtype=torch.float64), basis, 5, generator)
    both = torch.cat([basis, block])
    assert block.shape == (3, 10)
    torch.testing.assert_close(both @ both.T, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-14)


def test_dominant_rows_deflates_and_orders() -> None:
    directions = torch.eye(6, dtype=torch.float64)[:3]
    candidates = torch.tensor([[1e-9, 0, 0], [0, 3.0, 0], [0, 0, 0.5]], dtype=torch.float64) @ directions
    rows = dominant_rows(candidates, 3, 1e-6)
    torch.testing.assert_close(rows.abs(), directions[1:])

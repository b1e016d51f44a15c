"""A basis that spans its space: its products are all of the operator, so the answer is exact, and only measured."""

import math

import numpy as np
import pytest
import torch

from detjac_lanczos.solvers import Status, measure_triplets, svd
from detjac_lanczos.solvers.factorisation import Factorisation
from detjac_lanczos.solvers.operator import Direction
from tests.solvers.spectra import Recorder, matrix, spectrum

pytestmark = pytest.mark.usefixtures("one_thread")


def with_copies(count: int, size: int) -> np.ndarray:
    """Return 1/√j with the first ``count`` values equal."""
    values = spectrum("root", size)
    values[:count] = values[0]
    return values


@pytest.mark.parametrize(
    ("shape", "k", "block", "tol"),
    [
        ((24, 24), 20, 1, 1e-3),
        ((24, 48), 20, 2, 1e-6),
        ((80, 40), 12, 4, 1e-3),
        ((40, 80), 12, 1, 1e-3),
        ((30, 30), 12, 3, 1e-6),
    ],
)
def test_no_value_in_stored_products_is_missed(shape: tuple[int, int], k: int, block: int, tol: float) -> None:
    """Twelve copies at blocks so narrow that one side is full before all copies were seen on both."""
    values = with_copies(12, min(shape))
    for seed in range(2):
        A = matrix(values, shape, seed)
        operator = Recorder(A)
        result = svd(operator, k, tol=tol, method="lanczos", block=block, seed=seed)
        assert result.status is Status.CONVERGED
        np.testing.assert_allclose(result.S, values[:k], rtol=1e-12)
        assert result.certificate.claimed == k
        assert sum(operator.forward) + sum(operator.transposed) == result.work.products < sum(shape) + 2 * k
        np.testing.assert_allclose((A @ result.V - result.U * result.S).norm(dim=0), 0.0, atol=1e-12)
        np.testing.assert_allclose((A.T @ result.U - result.V * result.S).norm(dim=0), 0.0, atol=1e-12)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize("rank", [20, 12, 0])
def test_what_follows_from_one_side_is_the_operator(shape: tuple[int, int], rank: int) -> None:
    A = matrix(np.where(np.arange(20) < rank, spectrum("root", 20), 0.0), shape)
    forward = shape[1] == 20
    state, generator = Factorisation(shape, A.dtype, A.device), torch.Generator().manual_seed(0)
    few = torch.linalg.qr(torch.randn(max(shape), 4, generator=generator, dtype=A.dtype)).Q.T
    state.absorb(Direction.TRANSPOSED if forward else Direction.FORWARD, few, few @ (A if forward else A.T))
    assert not state.whole
    every = torch.eye(20, dtype=A.dtype)
    state.absorb(Direction.FORWARD if forward else Direction.TRANSPOSED, every, every @ (A.T if forward else A))
    assert state.whole
    state.deduce(1e-14, generator)
    U, V = state.U.rows, state.V.rows
    assert state.steps == 20
    assert max(state.U.count, state.V.count) <= max(rank + 4, 20)
    for one, other in ((U @ U.T, torch.eye(U.shape[0])), (V @ V.T, torch.eye(V.shape[0]))):
        torch.testing.assert_close(one, other.to(one), rtol=0, atol=1e-13)
    torch.testing.assert_close(state.AV.rows, V @ A.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(state.AtU.rows, U @ A, rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.values(), torch.linalg.svdvals(A), rtol=0, atol=1e-13)
    assert state.ritz(20).norms.max() <= 1e-13


@pytest.mark.parametrize("direction", [Direction.FORWARD, Direction.TRANSPOSED])
def test_what_was_deduced_is_forgotten_whole_however_often(direction: Direction) -> None:
    """Or the products that were made up would be taken for the operator's."""
    A = matrix(spectrum("root", 6), (6, 6))
    forward = direction is Direction.FORWARD
    ahead, behind = (A.T, A) if forward else (A, A.T)
    state, generator = Factorisation((6, 6), A.dtype, A.device), torch.Generator().manual_seed(0)
    eye = torch.eye(6, dtype=A.dtype)
    state.absorb(direction.other, eye[:2], eye[:2] @ behind)
    state.absorb(direction, eye, eye @ ahead)
    assert state.whole
    for _ in range(2):
        state.deduce(1e-14, generator)
        assert (state.U.count, state.V.count) == (6, 6)
    np.testing.assert_allclose(state.values(), spectrum("root", 6), rtol=1e-13)
    state.retract()
    assert (state.U.count, state.AtU.count) == ((2, 2) if forward else (6, 6))
    assert (state.V.count, state.AV.count) == ((6, 6) if forward else (2, 2))


def test_where_rounding_keeps_a_whole_operator_open_no_more_products_are_sent() -> None:
    A = matrix(spectrum("flat", 24), (48, 24)).float()
    result = svd(A, 20, tol=1e-9, method="lanczos", block=3)
    assert result.status is Status.NOISE_FLOOR
    assert float(result.residuals.max()) <= result.floor
    assert result.work.products <= 50 + 2 * 20


@pytest.mark.parametrize(("shape", "block"), [((8, 40), 8), ((40, 8), 10), ((6, 40), 10), ((10, 10), 10)])
def test_products_of_one_side_alone_claim_nothing(shape: tuple[int, int], block: int) -> None:
    """The first block spans a side; what the other product does is seen all the same."""
    A = matrix(spectrum("root", min(shape)), shape)
    noise = torch.Generator().manual_seed(0)

    def other() -> torch.Tensor:
        return A + 0.1 * torch.randn(shape, generator=noise, dtype=A.dtype)

    class Changing(Recorder):
        def matmat(self, X: torch.Tensor) -> torch.Tensor:
            return other() @ X

    right = svd(Recorder(A), 3, method="lanczos", block=block)
    assert right.status is Status.CONVERGED
    assert min(right.work.products_forward, right.work.products_transposed) > 0
    assert svd(Recorder(A, other().T), 3, method="lanczos", block=block).status is Status.NOT_ADJOINT
    assert svd(Changing(A), 3, method="lanczos", block=block).status is Status.NOT_DETERMINISTIC


@pytest.mark.parametrize(("dtype", "tol"), [(torch.bfloat16, 1e-3), (torch.bfloat16, 1e-2), (torch.float16, 1e-4)])
@pytest.mark.parametrize(("shape", "block"), [((2000, 3), 3), ((3, 2000), 3), ((200, 8), 8), ((12, 12), 12)])
@pytest.mark.parametrize("certify", ["triplets", "complete"])
def test_residuals_of_a_whole_are_those_of_the_operators_products(
    dtype: torch.dtype, tol: float, shape: tuple[int, int], block: int, certify: str
) -> None:
    """In half precision: the basis of the other side was made of the rounding of products, which it then hides."""
    for seed in range(3):
        A = gaussian(shape, seed).to(dtype)
        result = svd(A, 3, tol=tol, method="lanczos", block=block, certify=certify, seed=seed)
        fresh = measure_triplets(A, result.U, result.S, result.V, tol=tol)[0]
        torch.testing.assert_close(result.residuals, fresh.residuals, rtol=1e-2, atol=1e-6)
        assert result.certificate.claimed <= fresh.certificate.claimed
        true = torch.linalg.svdvals(A.double())[:3]
        assert float((result.S.double() - true).abs().max()) <= fresh.certificate.radius


@pytest.mark.parametrize(("shape", "block"), [((24, 24), 3), ((200, 8), 8), ((40, 12), 12)])
def test_a_budget_of_what_a_whole_takes_measures_it_and_no_probe_exceeds_it(shape: tuple[int, int], block: int) -> None:
    """The products that measure it count, one each way of a triplet."""
    A = matrix(spectrum("root", min(shape)), shape)
    needed = svd(A, 3, method="lanczos", block=block).work.products
    for spare in (0, 2, 8):
        options = {"block": block, "certify": "complete", "max_products": needed + spare}
        result = svd(A, 3, method="lanczos", **options)
        assert needed <= result.work.products <= needed + spare
    coarse = {"tol": 5e-2, "method": "lanczos", "block": block}
    free = svd(A.bfloat16(), 3, **coarse)
    bound = svd(A.bfloat16(), 3, **coarse, max_products=free.work.products)
    assert bound.certificate.claimed == free.certificate.claimed == 3


@pytest.mark.parametrize(("dtype", "tol"), [(torch.bfloat16, 3e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize(("shape", "block", "budget"), [((200, 8), 8, 30), ((8, 200), 8, 22), ((24, 24), 3, 50)])
def test_where_no_product_is_left_to_measure_a_whole_its_rounding_is_not_claimed(
    dtype: torch.dtype, tol: float, shape: tuple[int, int], block: int, budget: int
) -> None:
    k = min(shape)
    for seed in range(3):
        A = gaussian(shape, seed).to(dtype)
        result = svd(A, k, tol=tol, method="lanczos", block=block, max_products=budget, seed=seed)
        fresh = measure_triplets(A, result.U, result.S, result.V, tol=tol)[0]
        assert result.work.products <= budget
        assert result.certificate.claimed <= fresh.certificate.claimed
        double = svd(A.double(), k, method="lanczos", block=block, max_products=budget, seed=seed)
        assert double.certificate.claimed >= (k if min(shape) < max(shape) else 0)


@pytest.mark.parametrize(
    ("dtype", "share", "tol", "expected"),
    [
        (torch.float16, 0.05, 1e-2, Status.NOISE_FLOOR),
        (torch.float16, 0.3, 5e-2, Status.NOT_ADJOINT),
        (torch.bfloat16, 0.3, 5e-2, Status.NOT_ADJOINT),
        (torch.float64, 1e-4, 1e-6, Status.NOT_ADJOINT),
    ],
)
def test_a_transpose_that_is_wrong_along_what_was_deduced_is_seen(
    dtype: torch.dtype, share: float, tol: float, expected: Status
) -> None:
    A = gaussian((2000, 3), 0)
    first = torch.linalg.svd(A, full_matrices=False).U[:, :1]
    operator = Recorder(A.to(dtype), (A.T - share * (A.T @ first) @ first.T).to(dtype))
    for seed in range(3):
        result = svd(operator, 1, tol=tol, method="lanczos", seed=seed)
        assert result.status is expected
        assert result.certificate is None or result.certificate.claimed == 0


def test_an_operator_that_changes_once_a_side_is_whole_is_seen() -> None:
    A = gaussian((200, 3), 0)

    class Changing(Recorder):
        def matmat(self, X: torch.Tensor) -> torch.Tensor:
            return (1.0 + bool(self.forward)) * super().matmat(X)

    assert svd(Changing(A), 3, method="lanczos").status is Status.NOT_DETERMINISTIC


def test_nothing_is_claimed_where_measuring_a_whole_gives_nan() -> None:
    A = gaussian((20, 6), 0)

    class Failing(Recorder):
        def matmat(self, X: torch.Tensor) -> torch.Tensor:
            return super().matmat(X) * (math.nan if len(self.forward) > 1 else 1.0)

    result = svd(Failing(A), 3, method="lanczos", block=6)
    assert result.status is Status.NOT_FINITE
    assert result.certificate is None and bool(result.S.isnan().all())


def gaussian(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))

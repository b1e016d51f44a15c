"""Thick restart under a memory cap, and starts from vectors of other precisions and sizes: the claims still hold."""

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import Status, svd, svd_batch
from detjac_lanczos.solvers.search import Search
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum
from tests.solvers.test_factorisation import grown

NAMES = ["geometric", "harmonic", "root", "spike", "flat", "cluster", "multiple", "staircase", "gap"]


def bytes_for(vectors: int, shape: tuple[int, int], count: int = 1) -> int:
    """Bytes of so many float64 vectors of each side, with their products."""
    return vectors * 2 * sum(shape) * 8 * count


@pytest.mark.parametrize("passes", [9, 10, 11])
@pytest.mark.parametrize("ahead", [1, 2, 8])
def test_a_restart_keeps_triplets_and_measured_products(passes: int, ahead: int) -> None:
    A = matrix(spectrum("spike", 60), (80, 60))
    state = grown(A, passes)
    before, extra = state.ritz(5), abs(state.U.count - state.V.count)
    state.restart(6, ahead)
    after = state.ritz(5)
    U, V = state.U.rows, state.V.rows
    assert min(U.shape[0], V.shape[0]) == 6
    assert max(U.shape[0], V.shape[0]) == 6 + min(extra, ahead)
    close = {"rtol": 0, "atol": 1e-12 * 20}
    torch.testing.assert_close(state.AV.rows, V @ A.T, **close)
    torch.testing.assert_close(state.AtU.rows, U @ A, **close)
    np.testing.assert_allclose(state.projected, (U @ A @ V.T).numpy(), atol=1e-11)
    for basis in (U, V):
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=A.dtype), rtol=0, atol=1e-13)
    np.testing.assert_allclose(after.values, before.values, rtol=1e-12)
    np.testing.assert_allclose(after.norms, before.norms, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("certify", ["triplets", "complete"])
@pytest.mark.parametrize("block", [1, 3])
def test_a_cap_costs_passes_and_no_accuracy(name: str, certify: str, block: int, monkeypatch) -> None:
    """The bases stay within the cap but for what a probe hands over, and the claims are the same."""
    shape, cap = (200, 200), 8 + 7 + 6 * block
    A = matrix(spectrum(name, 200), shape)
    largest = 0
    absorb = Search.absorb

    def watched(self, direction, product):
        nonlocal largest
        absorb(self, direction, product)
        largest = max(largest, self.state.U.count, self.state.V.count)

    monkeypatch.setattr(Search, "absorb", watched)
    result = svd(A, 8, tol=1e-6, method="lanczos", block=block, certify=certify, memory=bytes_for(cap, shape))
    assert result.status is Status.CONVERGED, result.advice
    assert largest <= cap + (24 if certify == "complete" else 0)
    U, S, V = result.U, result.S, result.V
    residuals = torch.stack([(A @ V - U * S).norm(dim=0), (A.T @ U - V * S).norm(dim=0)], dim=1)
    assert float((residuals - result.residuals).max()) <= 1e-12 * float(S[0])
    assert bool((residuals.amax(dim=1) <= 1e-6 * S + 1e-13 * S[0]).all())
    assert float((U.T @ U - torch.eye(8, dtype=A.dtype)).abs().max()) <= 1e-12
    if block > 1:
        np.testing.assert_allclose(S, spectrum(name, 200)[:8], rtol=1e-6)


def test_a_generous_cap_changes_no_bit() -> None:
    A = matrix(spectrum("root", 150), (150, 150))
    free = svd(A, 8, method="lanczos")
    capped = svd(A, 8, method="lanczos", memory=bytes_for(150, (150, 150)))
    assert torch.equal(free.U, capped.U)
    assert free.work.products == capped.work.products


def test_operators_of_a_batch_share_the_memory(tmp_path) -> None:
    matrices = [matrix(spectrum(name, 150), (150, 150), seed) for seed, name in enumerate(("root", "spike", "flat"))]
    memory = bytes_for(34, (150, 150), count=3)
    together = svd_batch(matrices, 8, tol=1e-6, memory=memory, checkpoint=tmp_path)
    alone = svd(matrices[0], 8, tol=1e-6, memory=memory // 3)
    assert together[0].method == "lanczos"
    torch.testing.assert_close(together[0].S, alone.S, rtol=1e-12, atol=0)
    again = svd_batch(matrices, 8, tol=1e-6, memory=memory, checkpoint=tmp_path)
    for one, other in zip(together, again, strict=True):
        assert torch.equal(one.U, other.U)


def test_memory_that_cannot_serve_is_one_clear_line() -> None:
    A = torch.eye(100, dtype=torch.float64)
    for options, message in (
        ({"memory": 1000}, "holds 0 vectors of each basis, and k = 4 needs 29: give 92800 bytes or more"),
        ({"memory": "1KiB"}, "memory = 1KiB holds 0 vectors"),
        ({"memory": "many"}, "memory must be a number of bytes or a text such as '2GiB', not 'many'"),
        ({"memory": 2.5}, "a number of bytes"),
        ({"memory": True}, "a number of bytes"),
        ({"memory": 10**9, "method": "dense"}, "method 'lanczos'"),
        ({"memory": 10**9, "k": None, "threshold": 0.5}, "for a given k"),
        ({"memory": 92800, "start": torch.ones(100, 60)}, "a start of 60 columns needs 78"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            svd(A, **({"k": 4} | options))
        assert "\n" not in str(refused.value)


def test_memory_is_read_as_everywhere_else() -> None:
    A = torch.eye(100, dtype=torch.float64)
    found = [svd(A, 4, memory=memory) for memory in (102400, "100KiB", "102.4 kB", 102400.0, np.int64(102400))]
    for other in found[1:]:
        assert torch.equal(other.V, found[0].V)
    with pytest.raises(InputError, match="give 92800 bytes"):
        svd(A, 4, memory="90KiB")
    assert svd(A, 4, memory=92800).converged


@pytest.mark.parametrize("columns", [1, 3, 8, 20, 60])
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_of_any_precision_and_size_are_taken(columns: int, given: torch.dtype, dtype: torch.dtype) -> None:
    """A neighbour's vectors, fewer or more than k, rounded or not: both claims hold, COMPLETE or only BOUND."""
    A = matrix(spectrum("root", 60), (80, 60))
    near = torch.linalg.svd(A + 1e-3 * matrix(spectrum("root", 60), (80, 60), seed=9)).Vh.T[:, :columns].to(given)
    result = svd(A.to(dtype), 8, tol=1e-4, method="lanczos", start=near, certify="complete")
    assert result.status is Status.CONVERGED
    certificate = result.certificate
    assert certificate is not None and certificate.claimed == 8
    claim = certificate.completeness
    assert claim is not None
    assert (spectrum("root", 60)[: len(claim.upper)] <= np.array(claim.upper)).all()
    np.testing.assert_allclose(result.S.double(), spectrum("root", 60)[:8], rtol=1e-4)


@pytest.mark.parametrize("size", [1e300, 1e-320])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_of_any_length_are_taken(size: float, dtype: torch.dtype) -> None:
    A = matrix(spectrum("root", 40), (40, 40))
    cold, warm = (
        svd(A.to(dtype), 8, tol=1e-4, method="lanczos", start=start)
        for start in (None, size * torch.linalg.svd(A).Vh.T[:, :8].contiguous())
    )
    assert warm.converged
    assert warm.work.products < cold.work.products


def test_a_start_from_another_layer_costs_no_claim() -> None:
    """Vectors that have nothing to do with the operator, or hide its leading one, only cost products."""
    A = matrix(spectrum("spike", 60), (60, 60))
    other = torch.linalg.qr(torch.randn(60, 8, generator=torch.Generator().manual_seed(3), dtype=A.dtype)).Q
    first = torch.linalg.svd(A).Vh[0]
    for start in (other, other - torch.outer(first, first @ other), torch.zeros(60, 3, dtype=A.dtype)):
        result = svd(A, 4, tol=1e-6, method="lanczos", start=start, certify="complete")
        assert result.converged
        np.testing.assert_allclose(result.S, spectrum("spike", 60)[:4], rtol=1e-6)


def test_complex_operators_are_refused() -> None:
    class Complex(SharingBatch):
        pass

    batch = Complex([torch.eye(5, dtype=torch.complex64)], [1.0])
    numpy_operator = np.eye(5, dtype=complex)
    for operator in (
        batch,
        torch.eye(5, dtype=torch.complex128),
        numpy_operator,
        Recorder(torch.eye(5).to(torch.complex64)),
    ):
        with pytest.raises(InputError, match="split it into real and imaginary parts"):
            svd(operator, 2)

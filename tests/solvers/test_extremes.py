"""What users bring: extreme scales, budgets, an ambient autocast, operators that answer with the wrong thing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers import Status, check_operator, measure_triplets, norms, polish, svd, svd_batch
from detjac_lanczos.solvers.rounding import epsilon_at
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

A = matrix(spectrum("root", 40), (60, 40))


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized"])
@pytest.mark.parametrize("exponent", [-1000, -600, 600, 1000])
def test_a_certificate_scales_with_the_operator(method: str, exponent: int) -> None:
    """Squares of the residuals vanish or overflow in float64 here: neither may pass for a residual of zero."""
    plain, scaled = (svd(A * 2.0**e, 3, tol=0.1, method=method) for e in (0, exponent))
    assert plain.certificate is not None and scaled.certificate is not None
    assert scaled.status is plain.status
    assert scaled.certificate.residual == pytest.approx(plain.certificate.residual, rel=0.05, abs=1e-12)
    assert scaled.certificate.e_k / 2.0**exponent == pytest.approx(plain.certificate.e_k, rel=0.05, abs=1e-12)


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized", "shared_basis"])
@pytest.mark.parametrize(
    ("dtype", "scale", "digits"),
    [
        (torch.float64, 1e-310, 13),
        (torch.float64, 1e-320, 3),
        (torch.float32, 1e-39, 6),
        (torch.float32, 1e-41, 4),
        (torch.float32, 1e-43, 2),
        (torch.float16, 1e-5, 3),
        (torch.float16, 3e-7, 1),
    ],
)
def test_products_too_small_for_their_type_are_no_wrong_transpose(
    method: str, dtype: torch.dtype, scale: float, digits: int
) -> None:
    """So many digits are left: claims are made where they meet the tolerance; the values are right to them."""
    tiny, tol = (torch.randn(60, 40, generator=torch.Generator().manual_seed(0)).double() * scale).to(dtype), 1e-2
    result = svd(tiny, 3, tol=tol, method=method)
    unit = 2.0**1000 if dtype is torch.float64 else 1.0
    exact = torch.linalg.svdvals(tiny.double() * unit)[:3]
    if method != "shared_basis":
        np.testing.assert_allclose(result.S.double() * unit, exact, rtol=max(tol, 2 * 10.0**-digits))
        assert result.status in (Status.CONVERGED, Status.NOISE_FLOOR)
        assert result.converged or "scale the operator" in result.advice
        assert result.converged or digits < 6
        assert not result.converged or digits > 2
        fresh = measure_triplets(tiny, result.U, result.S, result.V, tol=tol)[0]
        assert not result.converged or float(fresh.relative.max()) <= 1.5 * tol
    assert check_operator(tiny).ok
    wrong = Recorder(tiny, -tiny.T)
    assert svd(wrong, 3, tol=tol, method=method).status is Status.NOT_ADJOINT
    assert "rmatmat is not the transpose" in str(check_operator(wrong))


def test_products_shorter_than_their_rounding_contradict_nothing() -> None:
    """Entries of no more than two of the smallest numbers of float16: that of a product is as large as it is."""
    for seed in range(20):
        tiny = torch.randn(30, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        tiny = (tiny * (1e-7 / torch.linalg.matrix_norm(tiny, 2))).half()
        assert svd(tiny, 4, method="dense", seed=seed).status in (Status.NOISE_FLOOR, Status.BREAKDOWN_EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_digits_are_lost_under_the_normal_range_alone(dtype: torch.dtype) -> None:
    info, rows = torch.finfo(dtype), 64
    normal = info.smallest_normal * 8
    assert {epsilon_at(dtype, length, rows) for length in (0.0, normal, 1.0, info.max)} == {info.eps}
    assert epsilon_at(dtype, normal / 64, rows) == pytest.approx(64 * info.eps)


def test_dense_method_tells_a_whole_spectrum() -> None:
    low = matrix(np.array([3.0, 2.0, 1.0]), (30, 20))
    for operator in (low, torch.zeros(30, 20)):
        result = svd(operator, 5, method="dense")
        assert result.status is Status.BREAKDOWN_EXACT
        assert result.certificate is not None and result.certificate.claimed == 5


@pytest.mark.parametrize("budget", [10, 21, 30])
def test_every_method_keeps_its_budget(budget: int) -> None:
    for method in ("auto", "lanczos", "randomized"):
        assert svd(A, 5, tol=1e-9, method=method, max_products=budget).work.products <= budget
    with pytest.raises(InputError, match="needs 42 products"):
        svd(A, 5, method="dense", max_products=budget)


def test_an_ambient_autocast_changes_nothing() -> None:
    single = A.float()
    alone = svd(single, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = svd(single, 3)
        report = check_operator(single)
    assert report.ok
    assert torch.equal(alone.S, inside.S)


def test_a_default_device_is_not_that_of_arrays() -> None:
    half = A.half().numpy()
    alone = svd(half, 3)
    with torch.device("meta"):
        inside = svd(half, 3)
    assert torch.equal(alone.S, inside.S)


def test_a_start_of_eight_bits_is_refused() -> None:
    coarse = torch.ones(A.shape[1], 2).to(torch.float8_e4m3fn)
    with pytest.raises(InputError, match=r"torch.float8_e4m3fn on cpu: give finite .* of 16 bits or more"):
        svd(A, 2, method="lanczos", start=coarse)


def test_a_parameter_is_a_matrix(recwarn: pytest.WarningsRecorder) -> None:
    assert not svd(torch.nn.Parameter(A), 3).S.requires_grad
    assert not recwarn.list


@pytest.mark.parametrize("answer", [None, (product for product in ())])
@pytest.mark.parametrize("way", ["matmat", "rmatmat", "rmatmat_shared"])
def test_a_pass_that_returns_no_list_is_named(answer: object, way: str) -> None:
    broken = SharingBatch([A, A], [1.0, 1.0])
    setattr(broken, way, lambda blocks: answer)
    with pytest.raises(OperatorError, match=f"pass returned a {type(answer).__name__}: a list of tensors is needed"):
        svd_batch(broken, 3, method="dense" if way == "rmatmat_shared" else "lanczos")


def test_a_batch_that_is_none_is_one_clear_line() -> None:
    empty, free, shared_free = (SharingBatch([A], [rows]) for rows in (1.0, 0.0, 1.0))
    empty.shapes, shared_free.shared_cost = [], lambda: 0.0
    priceless = SimpleNamespace(**{name: getattr(empty, name) for name in dir(empty) if name != "cost"})
    for batch, message in (
        (empty, "an empty batch"),
        ([], "an empty batch"),
        (free, "numbers above 0"),
        (shared_free, "numbers above 0"),
        (priceless, "SimpleNamespace is no batch of operators: give it cost"),
    ):
        with pytest.raises(InputError, match=message):
            svd_batch(batch, 3)
    with pytest.raises(InputError, match="start is a int: give a list"):
        svd_batch([A], 3, start=5)
    with pytest.raises(InputError, match="seed = 'x'"):
        check_operator(A, seed="x")


@pytest.mark.parametrize("answer", [None, np.zeros((60, 3))])
def test_an_answer_that_is_no_tensor_is_named(answer: object) -> None:
    broken = Recorder(A)
    broken.matmat = lambda X: answer
    assert type(answer).__name__ in str(check_operator(broken))
    with pytest.raises(OperatorError, match="torch tensor is needed"):
        svd(broken, 3, method="lanczos")


def test_a_scipy_operator_without_a_transpose_is_named() -> None:
    one_way = LinearOperator(tuple(A.shape), matvec=lambda v: A.numpy() @ v.ravel(), dtype=np.float64)
    with pytest.raises(OperatorError, match="rmatvec"):
        svd(one_way, 3)


def test_a_default_device_is_not_that_of_the_operator() -> None:
    start = np.ones((A.shape[1], 2))
    torch.set_default_device("meta")
    try:
        methods = {"lanczos": {"start": start}, "randomized": {}, "dense": {}, "auto": {"certify": "complete"}}
        found = [svd(A, 3, method=method, **options) for method, options in methods.items()]
        found += [svd(A, energy=0.5, method="lanczos"), svd(A, threshold=0.3), svd(A, 1, certify="complete")]
        assert all(result.converged for result in found)
        assert check_operator(A).ok
        norms(A, found[0], lengths=True)
        norms(A, exact=True)
        surveyed = svd_batch([A, A], 3, method="shared_basis")
        assert all(result.converged for result in polish([A, A], surveyed, [0, 1]))
    finally:
        torch.set_default_device(None)

"""TRIPLETS is true, and says no more than was measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers import Status, measure_triplets, svd, svd_batch
from detjac_lanczos.solvers.certificate import Certificate, certify_triplets
from detjac_lanczos.solvers.rounding import epsilon, noise_floor
from tests.solvers.spectra import Recorder, matrix, spectrum

NAMES = ["geometric", "harmonic", "root", "spike", "flat", "cluster", "multiple", "staircase", "graded", "gap"]


def distance_to_distinct(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the least e such that every value has a singular value of its own within e."""
    distances = (values[:, None] - exact[None, :]).abs().numpy()
    rows, columns = linear_sum_assignment(distances > np.inf if not distances.size else distances)
    return float(distances[rows, columns].max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-5])
def test_k_distinct_values_lie_within_the_radius(name: str, block: int, tol: float) -> None:
    """Never false, also where a value was missed: width 1 and loose tolerances are here on purpose."""
    for seed in range(3):
        A = matrix(spectrum(name, 40), (40, 50), seed)
        exact = torch.linalg.svdvals(A)
        result = svd(A, 6, tol=tol, method="lanczos", block=block, seed=seed)
        certificate = result.certificate
        assert certificate is not None
        assert certificate.claimed == 6
        assert distance_to_distinct(result.S, exact) <= certificate.radius + 1e-15
        assert bool((exact[:6] + 1e-14 * exact[0] >= result.S).all())


def test_two_triplets_that_share_one_value_are_not_two() -> None:
    """diag(1, 0.998, 0): both vectors of the pair are near one singular vector, and e says so."""
    A = torch.diag(torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64))
    angle = 0.05
    V = torch.tensor([[np.cos(angle), np.sin(angle)], [0.0, 0.0], [np.sin(angle), -np.cos(angle)]], dtype=torch.float64)
    S = torch.tensor([1.0, 1.0], dtype=torch.float64)
    _, certificate = certify_triplets(V, S, V, A @ V, A.T @ V, tol=0.5, floor=1e-15)
    assert certificate.claimed == 1
    _, both = certify_triplets(V, S, V, A @ V, A.T @ V, tol=2.0, floor=1e-15)
    assert both.e_k >= 0.8


def test_lost_orthonormality_widens_the_radius() -> None:
    """The same vector twice: every residual is nothing, and the claim is worth nothing."""
    A = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    V = torch.eye(3, dtype=torch.float64)[:, [0, 0]]
    S = torch.tensor([3.0, 3.0], dtype=torch.float64)
    residuals, certificate = certify_triplets(V, S, V, A @ V, A.T @ V, tol=1e-3, floor=1e-15)
    assert float(residuals.max()) == 0.0
    assert certificate.orthonormality == pytest.approx((1.0, 1.0))
    assert certificate.radius >= 2.0


@pytest.mark.parametrize("kind", ["tiny", "one twice", "zero"])
def test_vectors_that_are_not_orthonormal_claim_nothing(kind: str) -> None:
    """Every residual is within the tolerance, or nothing at all."""
    A, S = torch.diag(torch.linspace(3, 1, 20, dtype=torch.float64)), torch.tensor([3.0, 3.0], dtype=torch.float64)
    V = torch.eye(20, dtype=torch.float64)[:, [0, 0]]
    U, S = {"tiny": (1e-9 * V.flip(0), 41 * S), "one twice": (V, S), "zero": (0 * V, 0 * S)}[kind]
    V = U if kind != "tiny" else 1e-9 * V
    (measured,) = measure_triplets(A, U, S, V)
    assert measured.certificate.claimed == 0
    assert measured.certificate.line == "TRIPLETS 0/2, the vectors are not orthonormal"


@pytest.mark.parametrize("loss", [1e-3, 0.03, 0.09])
def test_the_radius_covers_the_loss_of_orthonormality_that_is_claimed_with(loss: float) -> None:
    for seed in range(20):
        A = matrix(spectrum("root", 30), (40, 30), seed)
        left, values, right = torch.linalg.svd(A, full_matrices=False)
        mixing = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        mixing += mixing.mT.clone()
        mixing *= 0.5 * loss / torch.linalg.matrix_norm(mixing, 2)[:, None, None]
        U, V = (block[:, :3] @ (torch.eye(3).double() + m) for block, m in zip((left, right.T), mixing, strict=True))
        (measured,) = measure_triplets(A, U, values[:3] * (1 + loss), V, tol=0.9)
        assert 0.5 * loss < max(measured.certificate.orthonormality) < 1.1 * loss
        assert measured.certificate.claimed == 3
        assert distance_to_distinct(values[:3] * (1 + loss), values) <= measured.certificate.radius


def test_adjoint_defect_is_in_the_certificate() -> None:
    A = matrix(spectrum("geometric", 20), (20, 20))
    result = svd(A, 3)
    (measured,) = measure_triplets(Recorder(A, 1.01 * A.T), result.U, result.S, result.V, tol=1e-12)
    certificate = measured.certificate
    assert certificate.adjoint_defect == pytest.approx(0.01, rel=0.1)
    assert certificate.claimed == 0 == certificate.e_k
    assert certificate.radius >= 0.009 * certificate.sigma_1


PLANE = torch.eye(3, dtype=torch.float64)[:, :2]
PAIR = torch.tensor([4.0, 4.0], dtype=torch.float64)
IMAGE = 4.0 * PLANE
"""Exact triplets of diag(4, 4, 1) and their products."""


def test_orthonormality_is_of_each_side() -> None:
    _, certificate = certify_triplets(PLANE, PAIR, 1.1 * PLANE, IMAGE, IMAGE, tol=0.5, floor=0.0)
    assert certificate.orthonormality == pytest.approx((0.0, 0.21))


@pytest.mark.parametrize(("right", "left"), [(1.01, 1.0), (1.0, 1.01)])
def test_the_residual_of_a_cluster_is_the_larger_of_both_sides(right: float, left: float) -> None:
    _, certificate = certify_triplets(PLANE, PAIR, PLANE, right * IMAGE, left * IMAGE, tol=0.5, floor=0.0)
    assert [cluster.residual for cluster in certificate.clusters] == pytest.approx([0.04])


@pytest.mark.parametrize(("least", "claimed"), [(0.003, 2), (0.005, 0)])
def test_no_residual_is_claimed_below_what_products_lose(least: float, claimed: int) -> None:
    _, certificate = certify_triplets(PLANE, PAIR, PLANE, IMAGE, IMAGE, tol=1e-3, floor=0.0, least=least)
    assert certificate.claimed == claimed


def test_e_k_holds_the_mismatch_of_the_products() -> None:
    mismatch = torch.tensor([0.3, 0.4], dtype=torch.float64)
    _, certificate = certify_triplets(PLANE, PAIR, PLANE, IMAGE, IMAGE, tol=0.5, floor=0.0, mismatch=mismatch)
    assert certificate.e_k == pytest.approx(0.5)


@pytest.mark.parametrize(("exact", "claimed"), [({}, 2), ({"exact": False}, 2), ({"exact": True}, 3)])
@pytest.mark.parametrize("unit", [1.0, 2.0**-400, 2.0**400])
def test_a_certificate_goes_with_the_units_of_its_operator(unit: float, exact: dict[str, bool], claimed: int) -> None:
    """A value under the floor is claimed, as a zero, of a spectrum known as a whole alone."""
    vectors = torch.eye(4, dtype=torch.float64)[:, :3]
    S, products, mismatch = torch.tensor([[4.0, 4.0, 1e-6], [4.01, 4.0, 2e-6], [3e-3, 4e-3, 0.0]], dtype=torch.float64)

    def certified(unit: float, scale: float) -> tuple[torch.Tensor, Certificate]:
        image, lost = unit * scale * products * vectors, {"floor": 1e-5 * unit, "least": 1e-3 * unit}
        return certify_triplets(
            vectors, unit * S, vectors, image, image, tol=1e-2, scale=scale, mismatch=unit * mismatch, **lost, **exact
        )

    plain_residuals, plain = certified(1.0, 1.0)
    residuals, certificate = certified(unit, 2.0**-50)
    assert plain.claimed == claimed
    assert [cluster.indices for cluster in plain.clusters] == [(0, 1)]
    (cluster,) = (replace(cluster, residual=unit * cluster.residual) for cluster in plain.clusters)
    absolute = {name: unit * getattr(plain, name) for name in ("e_k", "floor", "sigma_1")}
    assert certificate == replace(plain, clusters=(cluster,), **absolute)
    assert torch.equal(residuals, unit * plain_residuals)


def test_clusters_are_one_subspace() -> None:
    A = matrix(np.concatenate([[2.0, 2.0, 1.0, 0.5], np.full(20, 0.1)]), (30, 24))
    certificate = svd(A, 4, tol=1e-4, method="lanczos").certificate
    assert certificate is not None
    assert [cluster.indices for cluster in certificate.clusters] == [(0, 1)]
    assert certificate.clusters[0].residual <= certificate.e_k + 1e-15


def test_clusters_are_of_neighbouring_values_in_whatever_order_they_are_given() -> None:
    """Indices are the caller's: 3 and 5 coincide with none, the two that are 4 with each other."""
    A = torch.diag(torch.tensor([5.0, 4.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    vectors = torch.eye(5, dtype=torch.float64)[:, [1, 2, 0, 3]]
    (measured,) = measure_triplets(A, vectors, torch.tensor([4.0, 3.0, 5.0, 4.0]), vectors)
    assert measured.certificate.claimed == 4
    assert [cluster.indices for cluster in measured.certificate.clusters] == [(0, 3)]


@pytest.mark.parametrize(
    ("residual", "text"), [(7.04e-4, "7.1e-4"), (7.1e-4, "7.1e-4"), (9.96e-4, "1.0e-3"), (0.0, "0"), (2e-16, "2.0e-16")]
)
def test_the_line_never_rounds_down(residual: float, text: str) -> None:
    certificate = Certificate(8, 8, 1e-3, residual, 1e-3, (0.0, 0.0), 0.0, 0.0, (), 1.0)
    assert certificate.line == f"TRIPLETS 8/8, residual ≤ {text}"


def test_measuring_again_agrees_and_finds_tampering() -> None:
    matrices = [matrix(spectrum(name, 30), (40, 30)) for name in ("geometric", "spike")]
    results = svd_batch(matrices, 4, method="lanczos")
    U, S, V = ([getattr(result, name) for result in results] for name in ("U", "S", "V"))
    operators = [Recorder(A) for A in matrices]
    for result, measured in zip(results, measure_triplets(operators, U, S, V), strict=True):
        torch.testing.assert_close(measured.residuals, result.residuals, rtol=0, atol=1e-13)
        assert result.certificate is not None
        assert measured.certificate.line == result.certificate.line
    assert [(op.forward, op.transposed) for op in operators] == [([4], [4])] * 2
    S[1] = S[1] * 1.01
    honest, tampered = measure_triplets(operators, U, S, V)
    assert honest.certificate.claimed == 4
    assert tampered.certificate.claimed == 0
    assert tampered.certificate.line.startswith("TRIPLETS 0/4")


def test_triplets_that_do_not_fit_are_refused() -> None:
    A = matrix(spectrum("geometric", 30), (40, 30))
    result = svd(A, 4)
    with pytest.raises(InputError, match=r"needs \(40, k\)"):
        measure_triplets(A, result.V, result.S, result.U)
    with pytest.raises(InputError, match="NaN"):
        measure_triplets(A, result.U * float("nan"), result.S, result.V)
    with pytest.raises(InputError, match="as many"):
        measure_triplets([A, A], result.U, result.S, result.V)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"U": torch.ones(40, dtype=torch.float64)}, r"U \(40,\)"),
        ({"U": torch.ones(40, 4, dtype=torch.complex128)}, "U of operator 0 is torch.complex128"),
        ({"S": torch.ones(4, dtype=torch.complex128)}, "S of operator 0 is torch.complex128"),
        ({"S": torch.tensor(1.0)}, r"S \(\)"),
        ({"V": np.ones((30, 4), complex)}, "V of operator 0 is a ndarray"),
        ({"U": torch.ones(40, 4).to_sparse()}, "torch.sparse_coo"),
        ({"V": torch.ones(30, 4, device="meta")}, "on meta"),
        (
            {"U": torch.ones(40, 4).to(torch.float8_e4m3fn)},
            "U of operator 0 is torch.float8_e4m3fn.* of 16 bits or more",
        ),
        ({"S": torch.tensor([1.0, 0.9, 0.8, -0.7])}, "triplets 0 hold negative values"),
        ({"U": None}, "U is a NoneType"),
        ({"U": ["a"]}, "U of operator 0 is a str"),
        *(({"tol": tol}, "no tolerance") for tol in ("x", None, 2, 1e300, 0)),
        *(({"passes": passes}, "counts no passes") for passes in (None, -1, 1.5)),
    ],
)
def test_what_cannot_be_measured_is_named(broken: dict[str, object], said: str) -> None:
    A = matrix(spectrum("geometric", 30), (40, 30))
    result = svd(A, 4)
    with pytest.raises(InputError, match=said):
        measure_triplets(A, **({"U": result.U, "S": result.S, "V": result.V} | broken))


def test_triplets_may_be_numpy_arrays() -> None:
    A = matrix(spectrum("geometric", 30), (40, 30))
    result = svd(A, 4)
    arrays = [part.numpy() for part in (result.U, result.S, result.V)]
    (expected,) = measure_triplets(A, result.U, result.S, result.V)
    for given in (arrays, [[part] for part in arrays]):
        (measured,) = measure_triplets(A, *given)
        assert torch.equal(measured.residuals, expected.residuals)
        assert measured.certificate == expected.certificate


def test_an_operator_that_is_not_finite_is_named() -> None:
    A = matrix(spectrum("geometric", 30), (40, 30))
    result = svd(A, 4)
    A[3, 3] = float("nan")
    with pytest.raises(OperatorError, match="operator 0, forward pass 1: the product holds NaN"):
        measure_triplets(A, result.U, result.S, result.V)


def test_what_residuals_may_differ_by_follows_the_products_and_the_floor_the_values() -> None:
    A = matrix(spectrum("spike", 60), (60, 60)).float()
    for found, longer in ((svd(A, 2, method="lanczos"), 1.0), (svd(A, 2, method="lanczos", max_products=4), 3.0)):
        (measured,) = measure_triplets(A, found.U, found.S, found.V)
        assert measured.certificate.floor == pytest.approx(noise_floor(epsilon(A.dtype), float(found.S[0]), 2))
        assert measured.rounding >= longer * measured.certificate.floor
        assert found.status is Status.BUDGET or measured.rounding <= (1 + 1e-3) * measured.certificate.floor

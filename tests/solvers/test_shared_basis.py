"""A survey: one left basis for all, lower bounds, what it misses measured without bias, and no claim beyond that."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import Status, SVDResult, flagged, polish, svd_batch, worst
from detjac_lanczos.solvers.batch import Subset
from detjac_lanczos.solvers.missed import CONFIDENCE, Cotangents, Missed, largest_error, measure_missed
from detjac_lanczos.solvers.overlap import held_share
from detjac_lanczos.solvers.streams import Stream
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

D_OUT, D_IN, COUNT = 240, 50, 24


class SummingBatch(SharingBatch):
    """Matrices of one height that share cotangents and add up products on the way, at the price of one column."""

    def matmat_sum(self, blocks):
        self.calls.append(("sum", [X.shape[1] for _, X in blocks]))
        return torch.stack([self.matrices[index] @ X for index, X in blocks]).sum(dim=0)


def neighbours(count: int = COUNT, seed: int = 0, tail: float = 0.05, turn: float = 0.3) -> list[Tensor]:
    """Matrices whose left vectors turn slowly from one to the next, over a tail that they do not share."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(D_OUT, 8, generator=generator, dtype=torch.float64)).Q
    values = torch.tensor([0.6**j for j in range(8)], dtype=torch.float64)
    found = []
    for index in range(count):
        left = torch.linalg.qr(left + turn * torch.randn(left.shape, generator=generator, dtype=torch.float64) / 15).Q
        right = torch.linalg.qr(torch.randn(D_IN, 8, generator=generator, dtype=torch.float64)).Q
        rest = matrix(tail * spectrum("root", D_IN), (D_OUT, D_IN), seed * 1000 + index)
        found.append(2.0**index * ((left * values) @ right.T + rest))
    return found


def batch_of(matrices: list[Tensor]) -> SummingBatch:
    return SummingBatch(matrices, [float(len(matrices) - index) for index in range(len(matrices))])


def survey(matrices: list[Tensor], k: int = 4, **options) -> list[SVDResult]:
    return svd_batch(batch_of(matrices), k, method="shared_basis", **options)


def test_operators_with_one_small_left_space_are_found_whole() -> None:
    """Nothing is left outside the basis: every value is exact, and growth ends before the budget does."""
    left = torch.linalg.qr(torch.randn(D_OUT, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    matrices = [left @ matrix(spectrum("harmonic", 6), (6, D_IN), seed) for seed in range(COUNT)]
    for result in survey(matrices, k=6, tol=1e-8):
        assert result.missed is not None
        np.testing.assert_allclose(result.S, spectrum("harmonic", 6), rtol=1e-10)
        assert result.missed.share <= 1e-20
        assert not result.missed.flagged
        assert result.missed.sigma_1[1] <= float(result.S[0]) + 2 * result.floor
        assert result.work.products < D_OUT // 3


def test_a_survey_finds_estimates_and_says_so() -> None:
    matrices = neighbours()
    results = survey(matrices)
    for A, result in zip(matrices, results, strict=True):
        exact = torch.linalg.svdvals(A)[:4]
        U, S, V = result.U, result.S, result.V
        assert (result.status, result.certificate, result.converged) == (Status.ESTIMATE, None, False)
        assert "polish" in result.advice
        assert bool((exact * (1 + 1e-13) >= S).all())
        assert bool(result.residuals[:, 0].isnan().all())
        torch.testing.assert_close((A.T @ U - V * S).norm(dim=0), result.residuals[:, 1], rtol=0, atol=1e-12 * S[0])
        assert float(result.residuals[:, 1].max()) <= 1e-12 * float(S[0])
        torch.testing.assert_close(torch.diagonal(U.T @ A @ V), S, rtol=1e-12, atol=0)
        for block in (U, V):
            torch.testing.assert_close(block.T @ block, torch.eye(4, dtype=A.dtype), rtol=0, atol=1e-13)
        assert float(S[0]) >= 0.98 * float(exact[0])


def test_rows_are_a_third_of_dense_and_no_operator_is_swept_alone() -> None:
    matrices = neighbours()
    batch = batch_of(matrices)
    results = svd_batch(batch, 4, method="shared_basis")
    assert {way for way, _ in batch.calls} == {"shared", "sum"}
    assert sum(result.work.row_sweeps for result in results) <= D_OUT * batch.shared_cost() / 3
    columns = {way: sum(widths[0] for name, widths in batch.calls if name == way) for way in ("shared", "sum")}
    for result in results:
        assert result.work.products_forward == columns["sum"]
        assert result.work.products_transposed == columns["shared"]
        assert result.work.passes == len(batch.calls)


@pytest.mark.parametrize("budget", [40, 55, 100])
def test_a_budget_is_kept(budget: int) -> None:
    for result in survey(neighbours(), max_products=budget):
        assert budget - 2 * 3 < result.work.products <= budget


def test_a_batch_that_cannot_add_gives_the_same_for_more_rows() -> None:
    matrices = neighbours()
    apart = SharingBatch(matrices, batch_of(matrices).rows)
    summed, plain = survey(matrices), svd_batch(apart, 4, method="shared_basis")
    for one, other in zip(summed, plain, strict=True):
        torch.testing.assert_close(one.S, other.S, rtol=1e-9, atol=0)
        assert one.work.products == other.work.products
    forward, back = (sum(getattr(r.work, name) for r in plain) for name in ("products_forward", "products_transposed"))
    rows = back + forward * (COUNT + 1) / 2
    assert sum(result.work.row_sweeps for result in plain) == pytest.approx(rows)
    assert sum(result.work.row_sweeps for result in summed) == pytest.approx(back + forward)


def test_the_same_seed_gives_the_same_bits() -> None:
    first, again, other = (survey(neighbours(), seed=seed)[3] for seed in (0, 0, 1))
    assert torch.equal(first.U, again.U)
    assert not torch.equal(first.U, other.U)


def test_callback_sees_values_rise() -> None:
    seen = []
    results = survey(neighbours(), callback=seen.append)
    assert [progress.finished for progress in seen[:-1]] == [0] * (len(seen) - 1)
    assert seen[-1].finished == seen[-1].operators == COUNT
    assert seen[-1].row_sweeps == pytest.approx(sum(result.work.row_sweeps for result in results))
    assert all(residuals.size == 0 for progress in seen for residuals in progress.residuals)
    for index, result in enumerate(results):
        values = [progress.values[index][0] for progress in seen if progress.values[index].size]
        assert len(values) > len(seen) / 2
        assert (np.diff(values) >= -1e-12 * values[-1]).all()
        np.testing.assert_allclose(values[-1], result.S[0], rtol=1e-6)


def test_frobenius_norms_are_unbiased() -> None:
    """Whatever basis was chosen: what it holds is exact and what it misses is measured by fresh probes."""
    matrices = neighbours(count=3, tail=0.5, turn=3.0)
    draws = [survey(matrices, k=2, seed=seed, max_products=32) for seed in range(150)]
    for index, A in enumerate(matrices):
        truth = float(A.square().sum())
        squares = np.array([draw[index].missed.frobenius ** 2 for draw in draws])
        assert abs(squares.mean() - truth) <= 4 * squares.std() / math.sqrt(len(squares))
        assert squares.std() > 1e-4 * truth


def _columns(diagonal: list[float]) -> tuple[Tensor, Tensor]:
    """Return [known; missing] of a matrix with two known rows, and the basis of these rows."""
    rows = torch.zeros(2 + len(diagonal), len(diagonal), dtype=torch.float64)
    rows[0, :2], rows[1, -1] = torch.tensor([0.5, 0.1]), 0.2
    rows[2:] = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    return rows, torch.eye(2, len(rows), dtype=torch.float64)


def _measured(rows: Tensor, basis: Tensor, seed: int, operators: int = 1, scale: float = 1.0) -> Missed:
    cotangents = Cotangents.outside(basis, 16, seed)
    known = basis @ rows
    _, values, right = torch.linalg.svd(known, full_matrices=False)
    return measure_missed(
        known, values, right, cotangents.rows @ rows, cotangents, basis, operators=operators, scale=scale, floor=0.0
    )


@pytest.mark.parametrize(
    "diagonal", [[1.0] + [0.0] * 29, [0.3] * 20, [0.9] + [0.1] * 30], ids=["all of v_1", "a tail", "v_1 and a tail"]
)
def test_the_bound_of_sigma_1_fails_no_more_often_than_it_says(diagonal: list[float]) -> None:
    """Where nothing but v_1 is outside the basis the bound is sharp: it fails as often as it says."""
    rows, basis = _columns(diagonal)
    exact = float(torch.linalg.matrix_norm(rows, ord=2))
    draws = [_measured(rows, basis, seed) for seed in range(400)]
    assert all(found.sigma_1[0] <= exact * (1 + 1e-12) for found in draws)
    failed = sum(found.sigma_1[1] < exact for found in draws)
    expected = len(draws) * (1 - CONFIDENCE)
    assert failed <= expected + 3 * math.sqrt(expected)
    rho = np.array([found.residuals.numpy() ** 2 for found in draws])
    _, _, right = torch.linalg.svd(basis @ rows, full_matrices=False)
    exactly = (rows[2:] @ right.T).square().sum(dim=0).numpy()
    assert (abs(rho.mean(axis=0) - exactly) <= 4 * rho.std(axis=0) / math.sqrt(len(draws)) + 1e-12).all()


def test_the_bounds_of_a_survey_hold_together() -> None:
    """Forty operators that each miss one direction of their own: the worst case of the sum of probabilities."""
    count, room, draws = 40, 60, 1000
    level = held_share(16, room, 0.3 / count)
    rows = [
        torch.linalg.qr(torch.randn(room, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q
        for seed in range(draws)
    ]
    failed = sum(bool((one[:count].square().sum(dim=1) < level).any()) for one in rows)
    assert 0.15 * draws <= failed <= 0.3 * draws
    assert held_share(16, 16, 1e-9) == held_share(0, 5, 1e-9) == 1.0


def test_the_bound_of_sigma_1_is_wider_among_more_operators() -> None:
    """‖[Q A; W A / √b]‖ for b the δ/N-quantile: δ is spent on all N together."""
    rows, basis = _columns([1.0] + [0.0] * 29)
    cotangents = Cotangents.outside(basis, 16, 0)
    for operators in (1, 40):
        b = held_share(16, 30, (1 - CONFIDENCE) / operators)
        bound = torch.linalg.matrix_norm(torch.cat([basis @ rows, cotangents.rows @ rows / math.sqrt(b)]), ord=2)
        assert _measured(rows, basis, 0, operators).sigma_1[1] == pytest.approx(float(bound))


@pytest.mark.parametrize(("height", "held"), [(30, 12), (30, 30), (40, 3)])
def test_cotangents_outside_a_basis_make_its_normal_rows(height: int, held: int) -> None:
    basis = torch.linalg.qr(
        torch.randn(height, held, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).Q.T
    found = Cotangents.outside(basis, 20, seed=4)
    assert found.rows.shape == (min(20, height - held), height)
    torch.testing.assert_close(
        found.rows @ found.rows.T, torch.eye(len(found.rows), dtype=torch.float64), atol=1e-13, rtol=0
    )
    assert float((found.rows @ basis.T).norm()) <= 1e-13
    normal = torch.randn(20, height, dtype=torch.float64, generator=Stream.SURVEY.generator(4))
    torch.testing.assert_close(found.factor @ found.rows, normal - normal @ basis.T @ basis, atol=1e-12, rtol=0)


def test_probes_that_fill_the_rest_of_the_space_leave_nothing_open() -> None:
    """20 dimensions: a basis of 8 and 12 cotangents know σ_1, whatever was chosen."""
    matrices = [matrix(spectrum("flat", 15), (20, 15), seed) for seed in range(6)]
    for A, result in zip(matrices, survey(matrices, k=2, max_products=40), strict=True):
        assert result.missed.sigma_1 == pytest.approx([float(torch.linalg.matrix_norm(A, ord=2))] * 2, rel=1e-12)


def test_estimates_are_nearer_than_lower_bounds() -> None:
    matrices = neighbours(tail=0.03)
    results = survey(matrices, max_products=60)
    exact = torch.stack([torch.linalg.matrix_norm(one, ord=2) for one in matrices])
    lacking = 1 - torch.stack([result.S[0] for result in results]) / exact
    error = (torch.stack([result.missed.values[0] for result in results]) / exact - 1).abs()
    assert float(error.median()) < 0.5 * float(lacking.median())


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_an_estimate_is_no_lower_than_what_is_certain(scale: float) -> None:
    """v_1 of the basis is not that of A: what the cotangents hold of A alone is longer than A v_1."""
    rows, basis = _columns([0.0] * 9 + [1.0] + [0.0] * 20)
    exact = float(torch.linalg.matrix_norm(rows, ord=2))
    length, raised = float(torch.linalg.matrix_norm(basis @ rows, ord=2)), 0
    for seed in range(40):
        found = _measured(rows * scale, basis, seed, scale=scale)
        (low, high), estimate = found.sigma_1, float(found.values[0])
        assert low <= estimate <= high and low <= exact * (1 + 1e-12)
        assert estimate == pytest.approx(max(low, math.hypot(length, float(found.residuals[0]))), rel=1e-12)
        raised += estimate > 1.1 * length
    assert raised > 10


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_what_is_missed_is_in_the_units_of_the_operator(scale: float) -> None:
    """Products come as ``scale`` times those of the operator."""
    rows, basis = _columns([0.9] + [0.1] * 30)
    plain, found = _measured(rows, basis, 0), _measured(rows * scale, basis, 0, scale=scale)
    assert float(plain.residuals.min()) > 0.0
    assert torch.equal(found.residuals, plain.residuals) and torch.equal(found.values, plain.values)
    for name in ("share", "frobenius", "sigma_1", "flagged"):
        assert getattr(found, name) == getattr(plain, name)


@pytest.mark.parametrize(
    ("estimate", "low", "high", "error"),
    [
        (3.0, 2.0, 4.0, 0.5),
        (2.0, 2.0, 8.0, 0.75),
        (1.0, 0.0, 2.0, math.inf),
        (0.0, 0.0, 2.0, 1.0),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_an_estimate_may_be_off_by_what_its_interval_allows(
    estimate: float, low: float, high: float, error: float
) -> None:
    """An operator of zeros is known: it is not flagged."""
    assert largest_error(estimate, low, high) == error


def test_operators_none_of_which_is_finite_are_all_said_to_be_so() -> None:
    results = survey([torch.full((D_OUT, D_IN), math.nan, dtype=torch.float64)] * 3)
    assert [result.status for result in results] == [Status.NOT_FINITE] * 3


def test_operators_that_share_nothing_are_flagged_and_others_are_not() -> None:
    """Two operators of their own, in opposite corners of the space, among neighbours that agree."""
    matrices = neighbours(tail=0.01)
    foreign = [matrix(spectrum("flat", D_IN), (D_OUT, D_IN), seed) for seed in (70, 71)]
    results = survey([*matrices, *foreign])
    assert flagged(results) == [COUNT, COUNT + 1]
    shares = [result.missed.share for result in results]
    assert min(shares[COUNT:]) > 3 * max(shares[:COUNT])


def test_polish_certifies_what_was_flagged_or_asked_for() -> None:
    matrices = neighbours(tail=0.01)
    matrices[5] = matrix(spectrum("flat", D_IN), (D_OUT, D_IN), 7)
    batch = batch_of(matrices)
    results = svd_batch(batch, 4, method="shared_basis")
    polished = polish(batch, results, tol=1e-5)
    assert [index for index, (a, b) in enumerate(zip(results, polished, strict=True)) if a is not b] == [5]
    asked = polish(batch, results, [2, 9], tol=1e-5)
    for index, result in [(5, polished[5]), (2, asked[2]), (9, asked[9])]:
        assert result.status is Status.CONVERGED
        assert result.certificate is not None and result.certificate.claimed == 4
        np.testing.assert_allclose(result.S, torch.linalg.svdvals(matrices[index])[:4], rtol=1e-8)
    warm = polish(batch, results, [2, 9], tol=1e-5, method="lanczos")
    cold = svd_batch([matrices[2], matrices[9]], 4, tol=1e-5, method="lanczos")
    assert sum(warm[i].work.products for i in (2, 9)) < sum(result.work.products for result in cold)
    assert polish(batch, results, []) == results
    for wrong in ([COUNT], [-1]):
        with pytest.raises(InputError, match="no result to begin with"):
            polish(batch, results, wrong)
    with pytest.raises(InputError, match="1 results for 24 operators"):
        polish(batch, results[:1])


def test_an_unknown_option_of_a_polish_is_named_as_its_own() -> None:
    A = matrix(spectrum("root", 30), (30, 30))
    with pytest.raises(TypeError, match=r"^polish\(\) got an unexpected keyword argument 'width'"):
        polish([A], svd_batch([A], 2, method="shared_basis"), [0], width=3)


def test_a_polish_of_many_writes_matrices_out_in_shared_rows() -> None:
    matrices = neighbours(turn=3.0)
    batch = batch_of(matrices)
    results = svd_batch(batch, 4, method="shared_basis")
    surveyed = len(batch.calls)
    for result, A in zip(polish(batch, results, range(COUNT)), matrices, strict=True):
        assert (result.status, result.method) == (Status.CONVERGED, "dense")
        np.testing.assert_allclose(result.S, torch.linalg.svdvals(A)[:4], rtol=1e-10)
    assert sum(width for way, (width, *_) in batch.calls[surveyed:] if way == "shared") == D_OUT


def test_the_worst_are_those_whose_estimate_may_be_furthest_off() -> None:
    results = survey(neighbours(tail=0.1))
    estimates = [(float(result.missed.values[0]), *result.missed.sigma_1) for result in results]
    doubts = [-max(abs(value / end - 1) for end in (low, high)) for value, low, high in estimates]
    assert worst(results, 5) == sorted(range(COUNT), key=doubts.__getitem__)[:5]
    assert [result.missed.flagged for result in results] == [doubt < -0.05 for doubt in doubts]


def test_a_pass_of_many_rows_is_made_of_several_sweeps() -> None:
    """Operators 0, 2 and 3 of costs 6, 4 and 3 with two columns each: 12 rows, then 8 + 6, in sweeps of 15."""
    matrices = neighbours(count=6)
    batch = batch_of(matrices)
    part = Subset(batch, [0, 2, 3], rows=15)
    blocks = [
        (i, torch.randn(D_IN, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i))) for i in range(3)
    ]
    for (_, block), index, product in zip(blocks, (0, 2, 3), part.matmat(blocks), strict=True):
        torch.testing.assert_close(product, matrices[index] @ block, rtol=1e-12, atol=0)
    assert batch.calls == [("forward", [2]), ("forward", [2, 2])]
    assert len(part.rmatmat([(i, torch.ones(D_OUT, 3, dtype=torch.float64)) for i in range(3)])) == 3
    assert batch.calls[2:] == [("transposed", [3]), ("transposed", [3]), ("transposed", [3])]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_changes_nothing_but_scale(scale: float, dtype: torch.dtype) -> None:
    matrices = neighbours()[:6]
    plain, scaled = survey([A.to(dtype) for A in matrices]), survey([(A * scale).to(dtype) for A in matrices])
    for one, other in zip(plain, scaled, strict=True):
        assert other.status is Status.ESTIMATE
        torch.testing.assert_close(other.S / scale, one.S, rtol=1e-4, atol=0)
        assert one.missed is not None and other.missed is not None
        assert other.missed.share == pytest.approx(one.missed.share, rel=1e-3)
        assert other.missed.sigma_1[1] / scale == pytest.approx(one.missed.sigma_1[1], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_surveyed_in_float32(dtype: torch.dtype) -> None:
    matrices = [(A / 2.0**index).to(dtype) for index, A in enumerate(neighbours())]
    for A, result in zip(matrices, survey(matrices), strict=True):
        assert result.S.dtype is torch.float32
        exact = float(torch.linalg.svdvals(A.double())[0])
        assert 0.95 * exact <= float(result.S[0]) <= exact + result.floor


def test_small_and_degenerate_batches() -> None:
    zero, low = torch.zeros(20, 9, dtype=torch.float64), matrix(np.array([3.0, 2.0, 1.0]), (20, 9))
    for result, values in zip(survey([zero, low, 1e-3 * low], k=5), (np.zeros(5), [3, 2, 1, 0, 0], 0), strict=True):
        assert result.status is Status.ESTIMATE
        if np.any(values):
            np.testing.assert_allclose(result.S, values, atol=1e-12)
        assert bool(result.U.isfinite().all())
    alone = survey([torch.eye(3, dtype=torch.float64)], k=3)[0]
    np.testing.assert_allclose(alone.S, np.ones(3))


@pytest.mark.parametrize("sound", [0, 5])
def test_one_operator_that_is_not_finite_leaves_the_others_alone(sound: int) -> None:
    class Broken(Recorder):
        def spoil(self, product):
            return product * (float("nan") if len(self.transposed) > sound else 1.0)

    matrices = neighbours()[:6]
    results = svd_batch([*matrices, Broken(matrices[0])], 4, method="shared_basis")
    assert [result.status for result in results] == [Status.ESTIMATE] * 6 + [Status.NOT_FINITE]
    assert bool(results[-1].S.isnan().all())
    assert bool(results[0].S.isfinite().all())


@pytest.mark.parametrize("wrong", [lambda A: 1.0001 * A.T, lambda A: -A.T, lambda A: torch.roll(A.T, 1, 0)])
def test_a_wrong_adjoint_is_seen_in_the_first_sum(wrong) -> None:
    matrices = [A / 2.0**index for index, A in enumerate(neighbours()[:6])]
    operators = [Recorder(A, wrong(A)) for A in matrices]
    for result in svd_batch(operators, 4, method="shared_basis"):
        assert result.status is Status.NOT_ADJOINT
        assert bool(result.S.isnan().all())


def test_chance_is_told_from_a_wrong_adjoint() -> None:
    class Jittering(SummingBatch):
        def rmatmat_shared(self, Y):
            return [product * (1 + 1e-3 * torch.rand(())) for product in super().rmatmat_shared(Y)]

    results = svd_batch(Jittering(neighbours()[:3], [1.0] * 3), 4, method="shared_basis")
    assert {result.status for result in results} == {Status.NOT_DETERMINISTIC}


def test_what_cannot_be_surveyed_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"one output space, these operators have \[20, 30\]"):
        svd_batch([torch.ones(20, 9), torch.ones(30, 9)], 2, method="shared_basis")
    with pytest.raises(InputError, match="holds no survey for k = 4: give 32 or more"):
        survey(neighbours(), max_products=31)


@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 30), (torch.float64, 157), (torch.float64, 200)])
def test_operators_of_far_scales_are_no_contradiction(dtype: torch.dtype, power: int) -> None:
    """1e30 beside 1e-30 in float32, 1e200 beside 1e-200: what relates their units is beyond the range of the type."""
    powers = (power, -power, 0)
    matrices = [(10.0**power * A).to(dtype) for power, A in zip(powers, neighbours(count=3), strict=True)]
    for A, power, result in zip(matrices, powers, survey(matrices, k=2), strict=True):
        assert result.status is Status.ESTIMATE
        low, high = (bound * 10.0**-power for bound in result.missed.sigma_1)
        first = float(torch.linalg.matrix_norm(A.double() * 10.0**-power, ord=2))
        assert low <= first * (1 + 1e-6) <= high * (1 + 1e-5)


def test_a_sum_of_many_half_precision_products_does_not_overflow() -> None:
    """Operators of σ_1 = 20000 that agree: each product is far from 65,504, their sum is not."""
    one = neighbours(count=1)[0]
    same = [(one * (20000 / float(torch.linalg.matrix_norm(one, ord=2)))).half()] * 60
    assert {result.status for result in survey(same, k=2)} == {Status.ESTIMATE}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_ends_hold_in_coarse_products_too(dtype: torch.dtype) -> None:
    """Products round either way: where the basis holds all of σ_1, half of them would come out above it."""
    matrices = [A.to(dtype) for A in neighbours(count=6, tail=0.01, turn=0.0)]
    for seed in range(5):
        for A, result in zip(matrices, survey(matrices, seed=seed), strict=True):
            assert result.missed.sigma_1[0] <= float(torch.linalg.matrix_norm(A.double(), ord=2))


def test_a_good_estimate_is_not_flagged_in_half_precision() -> None:
    """Seventy passes: rounding of float16 may not grow with their number, since no product makes the next one."""
    generator = torch.Generator().manual_seed(5)
    left = torch.linalg.qr(torch.randn(576, 8, generator=generator, dtype=torch.float64)).Q
    matrices = [
        (
            left @ matrix(spectrum("geometric", 8), (8, D_IN), seed)
            + 1e-3 * torch.randn(576, D_IN, generator=generator, dtype=torch.float64)
        ).half()
        for seed in range(8)
    ]
    results = survey(matrices, k=8)
    assert results[0].work.passes > 50
    for A, result in zip(matrices, results, strict=True):
        exact = float(torch.linalg.matrix_norm(A.double(), ord=2))
        assert result.missed.sigma_1[0] <= exact <= result.missed.sigma_1[1]
    assert flagged(results) == []
    for index, result in enumerate(results):
        assert f"polish(batch, results, which=[{index}])" in result.advice


def test_a_polish_that_wrote_matrices_out_is_replayed() -> None:
    """It began from the survey's vectors, which a recorded "dense" makes no use of."""
    matrices = [torch.randn(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    survey = svd_batch(matrices, k=2, method="shared_basis")
    first = polish(matrices, survey, range(6), method="auto")
    assert first[0].choices["method"] == "dense"
    again = polish(matrices, survey, range(6), choices=first[0].choices)
    assert all(torch.equal(a.U, b.U) and torch.equal(a.S, b.S) for a, b in zip(first, again, strict=True))
    with pytest.raises(InputError, match="makes none"):
        polish(matrices, survey, range(6), method="dense")


@pytest.mark.parametrize("options", [{"k": 2}, {"start": None}, {"k": 2, "start": None}])
def test_a_polish_takes_k_and_start_from_the_survey(options: dict) -> None:
    matrices = [torch.eye(5, dtype=torch.float64)] * 2
    survey = svd_batch(matrices, k=1, method="shared_basis")
    with pytest.raises(InputError, match=f"leave {' and '.join(options)} out"):
        polish(matrices, survey, [0], **options)


@pytest.mark.parametrize("which", [["a"], [0.0], [True], 5])
def test_what_to_polish_is_numbers_of_operators(which: object) -> None:
    matrices = [torch.eye(5, dtype=torch.float64)] * 2
    with pytest.raises(InputError, match="must hold the numbers of operators, 0 to 1"):
        polish(matrices, svd_batch(matrices, k=1, method="shared_basis"), which)

"""An operator that breaks its contract, or a budget that ends: the status says so, and never `converged`."""

import itertools

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import OperatorError
from detjac_lanczos.solvers import Status, svd, svd_batch
from detjac_lanczos.solvers.rounding import SAFETY
from detjac_lanczos.solvers.wording import rounded_up
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

A = matrix(spectrum("root", 50), (50, 50))
METHODS = ["lanczos", "randomized"]


class After(Recorder):
    """Spoils products from the fourth call on."""

    def __init__(self, matrix: torch.Tensor, value: float) -> None:
        super().__init__(matrix)
        self.value = value

    def spoil(self, product):
        if len(self.forward) + len(self.transposed) >= 4:
            product = product.clone()
            product[0, 0] = self.value
        return product


class Jittering(Recorder):
    """Another matrix at every call, 1 % around the first."""

    def spoil(self, product):
        return product * (1 + 0.01 * torch.rand(()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [*METHODS, "dense"])
def test_not_finite(method: str, value: float) -> None:
    operator = After(A, value)
    operator.forward = [0] * (3 if method == "dense" else 0)
    result = svd(operator, 4, method=method)
    assert result.status is Status.NOT_FINITE
    assert "operator 0" in result.advice
    assert not result.converged


def test_an_overflow_of_float16_is_advised_another_dtype() -> None:
    large = 6e4 * torch.ones(30, 30)
    result = svd(large.half(), 2, method="lanczos")
    assert result.status is Status.NOT_FINITE
    assert "compute in bfloat16 or float32, since float16 ends at 65,504" in result.advice
    assert svd(large.bfloat16(), 2, method="lanczos").status is not Status.NOT_FINITE


@pytest.mark.parametrize("k", [1, 32])
def test_a_first_pass_that_overflows_has_no_second_one_to_time(k: int) -> None:
    result = svd(torch.full((300, 300), 6e4, dtype=torch.float16), k)
    assert result.status is Status.NOT_FINITE
    assert result.work.passes >= 1


@pytest.mark.parametrize("method", [*METHODS, "dense", "shared_basis"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_value_that_overflows_is_none(method: str, dtype: torch.dtype) -> None:
    """Of products whose entries are all far smaller: σ_1 is 64 times an entry of the matrix."""
    largest = torch.finfo(dtype).max
    result = svd(torch.full((64, 64), 1.2 / 64 * largest, dtype=dtype), 1, method=method)
    assert result.status is Status.NOT_FINITE
    assert f"a singular value is above the largest number of {dtype}" in result.advice
    assert str(result)
    below = svd(torch.full((64, 64), 0.9 / 64 * largest, dtype=dtype), 1, method=method)
    assert below.status is not Status.NOT_FINITE
    assert float(below.S[0]) == pytest.approx(0.9 * largest, rel=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", [*METHODS, "dense", "shared_basis"])
def test_a_singular_value_that_overflows_is_told_without_a_warning_of_numpy(method: str) -> None:
    matrix, told = torch.full((64, 64), 1.2 / 64 * torch.finfo(torch.float64).max, dtype=torch.float64), []
    for callback in (None, told.append):
        assert svd(matrix, 1, method=method, callback=callback).status is Status.NOT_FINITE
    last = [float(progress.values[0][0]) for progress in told if len(progress.values[0])][-1:]
    assert told and last == ([] if method == "dense" else [np.inf])


def test_a_search_that_ends_with_its_sketch_tells_when() -> None:
    result = svd(torch.full((300, 300), torch.nan), energy=0.9, method="lanczos")
    assert result.status is Status.NOT_FINITE and result.work.passes == 1
    assert result.work.seconds > 0.0


@pytest.mark.parametrize("place", [0, 1])
def test_a_search_that_ends_with_its_sketch_leaves_the_shared_pass_to_the_others(place: int) -> None:
    matrices = [A.double(), A.double() / 2]
    alone = svd_batch(SharingBatch(list(matrices), [2.0, 1.0]), energy=0.9, method="lanczos")
    matrices[place] = torch.full_like(matrices[place], torch.nan)
    results = svd_batch(SharingBatch(matrices, [2.0, 1.0]), energy=0.9, method="lanczos")
    assert results[place].status is Status.NOT_FINITE
    assert torch.equal(results[1 - place].S, alone[1 - place].S)


def test_one_operator_that_is_not_finite_leaves_the_others_alone() -> None:
    results = svd_batch([A, After(A, float("nan")), A], 4, method="lanczos")
    assert [result.status for result in results] == [Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED]
    assert torch.equal(results[0].S, svd(A, 4, method="lanczos").S)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "wrong",
    [A, -A.T, 1.0001 * A.T, A.T + 1e-3 * torch.eye(50, dtype=A.dtype), torch.roll(A.T, 1, 0)],
    ids=["untransposed", "negated", "scaled", "shifted", "rolled"],
)
def test_not_adjoint(method: str, wrong: torch.Tensor) -> None:
    result = svd(Recorder(A, wrong), 4, method=method)
    assert result.status is Status.NOT_ADJOINT
    assert result.certificate is None
    assert bool(result.S.isnan().all())
    assert "check_operator" in result.advice


def test_a_wrong_transpose_is_told_by_the_first_pass_each_way() -> None:
    """The two passes of the search, and no third: what tells why they contradict is sent after them."""
    wrong = Recorder(A, -A.T)
    assert svd(wrong, 4, method="lanczos").status is Status.NOT_ADJOINT
    assert max(len(wrong.forward), len(wrong.transposed)) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_operator_in_low_precision_is_adjoint(dtype: torch.dtype) -> None:
    for seed in range(10):
        result = svd(matrix(spectrum("geometric", 200), (200, 200), seed).to(dtype), 4, method="lanczos", seed=seed)
        assert result.status in (Status.CONVERGED, Status.NOISE_FLOOR)


def test_not_deterministic() -> None:
    assert svd(Jittering(A), 4, method="lanczos").status is Status.NOT_DETERMINISTIC


@pytest.mark.parametrize("method", METHODS)
def test_budget(method: str) -> None:
    operator = Recorder(A)
    result = svd(operator, 4, tol=1e-10, method=method, max_products=30)
    assert result.status is Status.BUDGET
    assert sum(operator.forward) + sum(operator.transposed) <= 30
    assert "max_products" in result.advice
    assert result.certificate is not None
    assert result.certificate.claimed < 4
    assert result.certificate.claimed == int((result.relative.amax(dim=1) <= 1e-10).sum())


def test_advice_names_a_budget_only_where_one_was_given() -> None:
    flat = matrix(np.linspace(1.0, 0.99, 50), (50, 50))
    result = svd(flat, 4, method="randomized")
    assert (result.status, result.work.passes, result.work.products) == (Status.BUDGET, 60, 60 * 12)
    assert " in 60 passes: give a max_products above 720, raise tol, or ask for fewer" in result.advice
    assert svd(flat, 4, method="randomized", max_products=1440).work.products == 1440
    given = svd(flat, 4, method="randomized", max_products=240)
    assert " when the products ran out: raise max_products, raise tol, or ask for fewer" in given.advice


@pytest.mark.parametrize(("tol", "finer"), [(1e-3, True), (0.5, False)])
def test_more_products_are_no_remedy_for_a_tolerance_finer_than_rounding(tol: float, finer: bool) -> None:
    gaussian = torch.randn(80, 60, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = svd(gaussian, 4, tol=tol, method="lanczos", max_products=8)
    assert result.status is Status.BUDGET
    remedy = f"raise max_products, which may not help under the noise floor {rounded_up(result.floor)}."
    assert (f": raise tol, compute the operator in a higher precision, or {remedy}" in result.advice) == finer
    assert (": raise max_products, raise tol" in result.advice) != finer


@pytest.mark.parametrize("block", [2, 3, 5])
def test_the_smallest_budget_holds_k_triplets(block: int) -> None:
    result = svd(A, 8, tol=1e-10, method="lanczos", block=block, max_products=16)
    assert result.status is Status.BUDGET
    assert bool(result.S.isfinite().all())
    assert result.work.products == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_floor(dtype: torch.dtype) -> None:
    """A tolerance that the operator's precision cannot carry ends at the floor, with the level reached."""
    lowered = matrix(spectrum("spike", 150), (150, 150)).to(dtype)
    result = svd(lowered, 8, tol=1e-9, method="lanczos")
    assert result.status is Status.NOISE_FLOOR
    assert float(result.residuals.max()) <= result.floor
    assert result.certificate is not None
    assert result.certificate.claimed < 8
    assert "higher precision" in result.advice


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [*METHODS, "dense"])
def test_values_that_rounding_hides_are_no_zeros(method: str, dtype: torch.dtype) -> None:
    """The floor is half of σ_1 in bfloat16: what lies under it is neither claimed nor called zero."""
    half = torch.diag(torch.cat([torch.tensor([20.0]), torch.arange(1, 200).rsqrt()])).to(dtype)
    true = half.double().diagonal()
    for seed in range(10):
        result = svd(half, 4, tol=1e-2, seed=seed, method=method)
        assert result.status in (Status.CONVERGED, Status.NOISE_FLOOR) and "zero" not in result.advice
        if result.status.successful:
            assert (result.S.double() - true[:4]).abs().max() <= 1e-2
        if method != "randomized":
            assert svd(half, threshold=0.55, tol=1e-2, seed=seed, method=method).status is not Status.BREAKDOWN_EXACT
    assert svd(torch.zeros(50, 40, dtype=dtype), 3, method=method).status is Status.BREAKDOWN_EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [*METHODS, "dense"])
def test_a_zero_is_one_whatever_its_residual_rounds_to(method: str, dtype: torch.dtype) -> None:
    """Of a matrix of rank one the second residual rounds to 0, or does not: 0 ≤ tol · 0 is no convergence."""
    for pair in itertools.product(range(-4, 5), repeat=2):
        B = torch.zeros(3, 2, dtype=dtype)
        B[0] = torch.tensor(pair)
        result = svd(B, 2, method=method)
        assert (result.status, result.certificate.claimed) == (Status.BREAKDOWN_EXACT, 2)


LITTLE_LEFT = [
    ([1.0, 1.0, 1.0, 1e-5], torch.float32, {"threshold": 0.3}),
    ([1.0, 1.0, 1.0, 2e-14], torch.float64, {"threshold": 0.3}),
    ([1.0, 1e-5], torch.float32, {"k": 1, "block": 1}),
    ([1.0, 0.1], torch.float16, {"k": 1, "block": 1, "tol": 0.1}),
    ([1.0, 0.1, 0.1, 0.1, 0.1], torch.float16, {"threshold": 0.05, "tol": 0.1}),
]


@pytest.mark.parametrize(("values", "dtype", "options"), LITTLE_LEFT)
def test_what_a_random_vector_has_little_of_is_not_called_zero(values, dtype, options) -> None:
    """Of a random vector, the product is 1/√n of the value: under the floor here, where the value is far above it."""
    lowered = matrix(np.array(values), (300, 300)).to(dtype)
    wanted = options.get("k") or sum(value > options["threshold"] for value in values)
    for seed in range(6):
        result = svd(lowered, seed=seed, method="lanczos", **options)
        assert len(result.S) == wanted and result.floor < min(values)
        assert result.status is (Status.CONVERGED if len(values) > wanted else Status.BREAKDOWN_EXACT)


@pytest.mark.parametrize(
    ("values", "dtype", "options", "most"),
    [(*LITTLE_LEFT[2], 4), (*LITTLE_LEFT[3], 4), (*LITTLE_LEFT[4], 14)],
)
def test_nor_where_the_budget_leaves_no_second_look(values, dtype, options, most) -> None:
    lowered = matrix(np.array(values), (300, 300)).to(dtype)
    for seed in range(6):
        result = svd(lowered, seed=seed, method="lanczos", max_products=most, **options)
        assert result.status is not Status.BREAKDOWN_EXACT and result.work.products <= most


SECOND_LOOKS = [
    # Three values and 17 zeros: the row takes the place of one of the random rows that fill up the other side.
    ([3.0, 2.0, 1.0], {"k": 20, "block": 8}, 5, 44),
    # A strand ends while directions are open: the row is what it has left, and none of them.
    ([1.0, 1.0, 1.0], {"k": 4, "block": 2}, 6, 12),
    # Nothing is open: the row goes alone.
    ([3.0, 2.0, 1.0], {"k": 8, "block": 8}, 5, 28),
]


@pytest.mark.parametrize(("values", "options", "passes", "products"), SECOND_LOOKS)
def test_a_second_look_takes_no_pass_of_its_own_while_others_go(values, options, passes, products) -> None:
    low = matrix(np.array(values), (60, 60))
    for seed in range(3):
        result = svd(low, seed=seed, method="lanczos", **options)
        assert result.status is Status.BREAKDOWN_EXACT
        assert (result.work.passes, result.work.products) == (passes, products)


def test_the_smallest_budget_holds_a_second_look_where_zeros_are_wanted() -> None:
    low = matrix(np.array([3.0, 2.0, 1.0]), (60, 60))
    for seed in range(3):
        result = svd(low, 20, seed=seed, method="lanczos", block=8, max_products=40)
        assert (result.status, result.work.products) == (Status.BREAKDOWN_EXACT, 40)


def test_a_second_look_may_be_what_is_open() -> None:
    """The probe of a single column goes on in the direction that its products leave, which is that row."""
    low = matrix(np.array([3.0, 2.0, 1.0, 0.5]), (60, 60), 2)
    assert svd(low, 2, block=1, seed=2, method="lanczos").status is Status.CONVERGED


def test_a_space_known_as_a_whole_takes_no_second_look() -> None:
    """Three columns each way span the smaller space, and the three triplets are measured each way."""
    result = svd(matrix(np.array([1.0, 0.5]), (60, 3)), 3, method="lanczos", block=1)
    assert result.status is Status.BREAKDOWN_EXACT and result.work.products == 12


def test_nothing_found_above_a_threshold_is_said_so_at_the_floor_too() -> None:
    half = torch.diag(torch.arange(1, 101).rsqrt()).bfloat16()
    for seed in range(10):
        advice = svd(half, threshold=1.1, tol=1e-2, seed=seed, method="lanczos").advice
        assert advice.startswith("No singular value above 1.1 was found"), advice


def test_how_nothing_more_is_known_is_said() -> None:
    low = matrix(np.array([1.0, 0.5]), (30, 20))
    assert svd(low, 3, method="lanczos").advice.startswith("Random vectors find nothing left of the operator")
    assert svd(low, 3, method="dense").advice.startswith("Nothing of the operator is left")


def test_a_space_known_as_a_whole_is_judged_by_what_was_measured_of_it() -> None:
    """Residuals of stored products follow from each other there: what ended at the floor may meet the tolerance."""
    coarse = svd(torch.diag(torch.tensor([1.0, 0.5, 0.01])).bfloat16(), 3, method="lanczos")
    assert coarse.status is Status.CONVERGED
    B = torch.tensor([[0.5022410750389099, -0.531320333480835, -0.0372806191444397], [9e-19, 6.6e-18, -6.3e-18]])
    for seed in range(10):
        start = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
        assert svd(B, 2, start=start, method="lanczos", seed=seed).status is Status.BREAKDOWN_EXACT


def test_a_search_from_its_own_answer_claims_as_much() -> None:
    for pair in itertools.product(range(-5, 6), repeat=2):
        B = torch.zeros(3, 2, dtype=torch.float64)
        B[0] = torch.tensor(pair)
        cold = svd(B, 2, method="lanczos")
        for start in (cold.V, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)):
            for budget in (None, 7):
                warm = svd(B, 2, method="lanczos", start=start, max_products=budget)
                assert (warm.status, warm.certificate.claimed) == (Status.BREAKDOWN_EXACT, 2)


def test_what_is_under_a_low_floor_is_said_to_have_no_digits() -> None:
    low = torch.diag(torch.cat([torch.tensor([3e6]), torch.arange(1, 200).rsqrt()]))
    result = svd(low, 4, method="lanczos")
    assert result.status is Status.BREAKDOWN_EXACT
    assert "under the noise floor" in result.advice and "So are 3 of the 4 found" in result.advice


def test_zeros_are_not_said_to_meet_the_tolerance() -> None:
    """Of a Hilbert matrix, some values near the floor meet nothing: those under it are counted apart."""
    rows = np.arange(60.0)
    result = svd(1.0 / (rows[:, None] + rows + 1.0), 60, method="dense")
    assert result.status is Status.NOISE_FLOOR
    met = int((result.residuals.amax(dim=1) <= 1e-3 * result.S).sum())
    assert met < result.certificate.claimed < 60
    assert result.advice.startswith(f"{met} of 60 triplets meet the tolerance")
    assert f"{result.certificate.claimed - met} count as zeros, under the noise floor" in result.advice


SMALL = [(torch.float16, 3e-8), (torch.float16, 1e-7), (torch.bfloat16, 1e-40), (torch.bfloat16, 1e-39)]


@pytest.mark.parametrize(("dtype", "size"), [*SMALL, (torch.float32, 1e-45), (torch.float32, 1e-39)])
@pytest.mark.parametrize("method", [*METHODS, "dense"])
@pytest.mark.parametrize("single", [True, False])
def test_products_that_are_lost_altogether_are_not_called_zeros(
    method: str, dtype: torch.dtype, size: float, single: bool
) -> None:
    A = size * torch.randn(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if single:
        A = torch.zeros(40, 30, dtype=torch.float64)
        A[3, 4] = 2 * size
    A = A.to(dtype)
    first = float(torch.linalg.svdvals(A.double() / size)[0]) * size
    certify = "triplets" if method == "randomized" else "complete"
    result = svd(A, 3, method=method, certify=certify)
    if not result.S.any():
        assert (
            f"or under {rounded_up(SAFETY * least(dtype) * 40**0.5)}, which products in {dtype} may lose"
            in result.advice
        )
        assert first <= SAFETY * least(dtype) * 40**0.5
        claim = result.certificate.completeness
        assert claim is None or claim.upper[0] >= first


def least(dtype: torch.dtype) -> float:
    """Return the smallest number that is never taken for zero."""
    return 2.0**-24 if dtype is torch.float16 else torch.finfo(dtype).smallest_normal


def test_products_of_the_wrong_shape_or_type_raise() -> None:
    class Short(Recorder):
        def spoil(self, product):
            return product[:-1]

    class Whole(Recorder):
        def spoil(self, product):
            return product.int()

    with pytest.raises(OperatorError, match=r"operator 0, transposed pass 1: .* \(49, 3\) instead of \(50, 3\)"):
        svd(Short(A), 4, method="lanczos")
    with pytest.raises(OperatorError, match="int32"):
        svd(Whole(A), 4, method="lanczos")


@pytest.mark.parametrize("wrong", [A, torch.roll(A.T, 1, 0), 1.01 * A.T], ids=["untransposed", "rolled", "scaled"])
def test_the_dense_method_sees_a_wrong_adjoint_too(wrong: torch.Tensor) -> None:
    assert svd(Recorder(A, wrong), 4, method="dense").status is Status.NOT_ADJOINT


class Once(Recorder):
    """A tenth more from the given call on: as where dropout is switched on, or a weight is changed, in the middle."""

    def __init__(self, matrix: torch.Tensor, call: int, factor: float) -> None:
        super().__init__(matrix)
        self.call, self.factor = call, factor

    def spoil(self, product):
        return product * (self.factor if len(self.forward) + len(self.transposed) > self.call else 1.0)


@pytest.mark.parametrize("factor", [1.1, 1.0005])
@pytest.mark.parametrize("call", [1, 3, 6])
def test_an_operator_that_changes_on_the_way_is_told(call: int, factor: float) -> None:
    """The first pair of passes cannot show it; a change below the tolerance would even pass for convergence."""
    result = svd(Once(A, call, factor), 4, method="lanczos")
    assert result.status is Status.NOT_DETERMINISTIC
    assert result.certificate is None


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0005])
@pytest.mark.parametrize("options", [{"method": "lanczos", "certify": "complete"}, {"method": "randomized"}])
def test_no_pass_is_too_late_for_a_change(options: dict, factor: float) -> None:
    """Not that between a search and its probes, nor that between two rounds of subspace iteration."""
    sound = svd(A, 4, **options)
    assert sound.converged
    for call in range(1, sound.work.passes):
        result = svd(Once(A, call, factor), 4, **options)
        assert (result.status, result.certificate) == (Status.NOT_DETERMINISTIC, None), call


def test_probes_of_an_operator_that_is_gone_do_not_prove_that_nothing_was_missed() -> None:
    """The search began with exact vectors and has missed σ_1."""
    right = torch.linalg.svd(A)[2][1:6].T
    result = svd(Once(A, 2, 0.0), 5, start=right, method="lanczos", certify="complete")
    assert (result.status, result.certificate) == (Status.NOT_DETERMINISTIC, None)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0005])
def test_a_survey_holds_every_pass_of_its_basis_against_those_before(factor: float) -> None:
    operators = [Recorder(matrix(spectrum("harmonic", 50), (60, 50), seed)) for seed in range(3)]
    svd_batch(operators, 3, method="shared_basis", max_products=40)
    measuring = 6  # passes of the 16 cotangents that measure in the end, by blocks of 3
    for call in range(1, len(operators[0].forward) + len(operators[0].transposed) - measuring):
        changed = [Once(operator.matrix, call, factor) for operator in operators]
        statuses = {result.status for result in svd_batch(changed, 3, method="shared_basis", max_products=40)}
        assert statuses == {Status.NOT_DETERMINISTIC}, call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["geometric", "harmonic", "spike", "flat", "multiple", "staircase", "graded"])
def test_sound_operators_are_not_accused(dtype: torch.dtype, name: str) -> None:
    for seed, shape in enumerate([(60, 60), (70, 50), (40, 80)]):
        sound = matrix(spectrum(name, min(shape)), shape, seed).to(dtype)
        ways = [{"method": "lanczos", "certify": "complete"}, {"method": "randomized"}, {"method": "dense"}]
        for options in [*ways, {"method": "shared_basis"}]:
            for tol in (1e-2, 1e-6):
                result = svd(sound, 4, tol=tol, seed=seed, **options)
                assert result.status not in (Status.NOT_ADJOINT, Status.NOT_DETERMINISTIC), (shape, options, tol)


@pytest.mark.parametrize("method", ["dense", "randomized"])
def test_every_method_tells_chance_from_a_wrong_transpose(method: str) -> None:
    assert svd(Jittering(A), 4, method=method).status is Status.NOT_DETERMINISTIC


@pytest.mark.parametrize("scale", [1.0, 1e200])
@pytest.mark.parametrize("direction", ["matmat", "rmatmat"])
@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized", "shared_basis"])
def test_chance_in_one_direction_is_chance(method: str, direction: str, scale: float) -> None:
    operator, generator = Recorder(A * scale), torch.Generator().manual_seed(0)
    sound = getattr(operator, direction)

    def jittered(X):
        return sound(X) * (1 + 1e-5 * torch.randn(len(A), X.shape[1], generator=generator, dtype=A.dtype))

    setattr(operator, direction, jittered)
    assert svd(operator, 4, method=method).status is Status.NOT_DETERMINISTIC


def test_a_wrong_direction_that_random_vectors_hardly_see_ends_a_search_under_a_memory_cap() -> None:
    """Its residual stands still above the noise floor, and a basis that restarts never fills."""
    lie = 2e-4 * torch.outer(*torch.linalg.svd(A)[0].T[:2])
    wrong = (A + lie).T.float()
    result = svd(Recorder(A.float(), wrong), 4, tol=1e-6, method="lanczos", memory=30 * 2 * 100 * 4)
    assert result.status is Status.NOT_ADJOINT


def test_a_wrong_direction_is_told_where_the_budget_ends_the_search() -> None:
    """The first passes see too little of it."""
    lie = 2e-4 * torch.outer(*torch.linalg.svd(A)[0].T[:2])
    operator = Recorder(A.float(), (A + lie).T.float())
    assert svd(operator, 4, tol=1e-6, method="lanczos", max_products=24).status is Status.NOT_ADJOINT


def test_one_value_that_is_left_is_no_exact_end() -> None:
    """The spaces of one column hold all of the operator once four steps were made."""
    low = matrix(np.array([3.0, 2.0, 1.0, 0.5]), (20, 15))
    for k, status in ((3, Status.CONVERGED), (4, Status.BREAKDOWN_EXACT)):
        assert svd(low, k, tol=1e-12, method="lanczos", block=1).status is status


@pytest.mark.parametrize("options", [{"block": 9}, {"block": 50}, {"start": torch.eye(50)[:, :20]}, {"block": 1}])
@pytest.mark.parametrize("budget", [8, 9, 13])
def test_a_first_block_wider_than_the_budget_is_cut(options: dict, budget: int) -> None:
    operator = Recorder(A)
    result = svd(operator, 4, tol=1e-10, method="lanczos", max_products=budget, **options)
    assert sum(operator.forward) + sum(operator.transposed) == result.work.products <= budget
    assert result.status is Status.BUDGET
    assert len(result.S) == 4


def test_telling_why_products_contradict_costs_no_more_than_the_budget() -> None:
    operator = Recorder(A, A)
    assert svd(operator, 4, method="lanczos", block=4, max_products=9).status is Status.NOT_ADJOINT
    assert sum(operator.forward) + sum(operator.transposed) <= 9


@pytest.mark.parametrize(("method", "least"), [("lanczos", 8), ("randomized", 8), ("dense", 52)])
@pytest.mark.parametrize("spare", [0, 1, 2, 30])
def test_what_is_sent_again_is_counted_and_within_the_budget(method: str, least: int, spare: int) -> None:
    operator = Recorder(A, -A.T)
    result = svd(operator, 4, method=method, max_products=least + spare)
    assert result.status is Status.NOT_ADJOINT
    assert sum(operator.forward) == result.work.products_forward
    assert sum(operator.transposed) == result.work.products_transposed
    assert result.work.products <= least + spare


class OneBuffer(Recorder):
    """Writes every product into memory that all operators of its kind share."""

    memory = torch.empty(50 * 50, dtype=A.dtype)

    def spoil(self, product):
        return self.memory[: product.numel()].view(product.shape).copy_(product)


class InPlace(Recorder):
    """Computes in the block that it is given, and returns it."""

    def matmat(self, X):
        return X.copy_(self.matrix @ X)

    def rmatmat(self, Y):
        return Y.copy_(self.transpose @ Y)


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized", "shared_basis"])
@pytest.mark.parametrize("kind", [OneBuffer, InPlace])
def test_operators_may_reuse_memory(kind: type[Recorder], method: str) -> None:
    """Without copies, every operator of a batch would get the triplets of the last one, certified."""
    matrices = [A, 2 * A + torch.eye(50), torch.roll(A, 1, 0)]
    expected = svd_batch(matrices, 3, method=method)
    found = svd_batch([kind(matrix) for matrix in matrices], 3, method=method)
    for one, other in zip(found, expected, strict=True):
        assert one.status is other.status
        torch.testing.assert_close(one.S, other.S)


@pytest.mark.parametrize(("k", "width"), [(16, 8), (64, 8), (32, 16)])
def test_what_random_columns_take_of_rounding_is_no_progress(k: int, width: int) -> None:
    """Wide blocks bring all residuals down by a share of the rounding in every pass, and never to such a tolerance."""
    A = matrix(spectrum("harmonic", 576), (576, 576), seed=2).float()
    result = svd(A, k, tol=1e-6, block=width, method="lanczos")
    assert result.status is Status.NOISE_FLOOR
    assert result.work.products < 576

"""What counts as an operator, and what ``check_operator`` says about one that is not."""

import re
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator as ScipyLinearOperator

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers import Status, as_operator, check_operator, svd, svd_batch
from detjac_lanczos.solvers.check import OperatorReport
from detjac_lanczos.solvers.operator import MatrixOperator
from detjac_lanczos.solvers.testing import OperatorTestCase
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

DENSE = matrix(spectrum("geometric", 12), (15, 12))


class TestTorchMatrix(OperatorTestCase):
    def create_operator(self):
        return DENSE.float()

    def create_dense(self):
        return DENSE


class TestNumpyMatrix(OperatorTestCase):
    def create_operator(self):
        return DENSE.numpy()

    def create_dense(self):
        return DENSE


class TestSparseMatrix(OperatorTestCase):
    def create_operator(self):
        return scipy.sparse.csr_array(DENSE.numpy())

    def create_dense(self):
        return DENSE


class TestScipyOperatorByVectors(OperatorTestCase):
    def create_operator(self):
        A = DENSE.numpy()
        return ScipyLinearOperator(A.shape, matvec=lambda x: A @ x, rmatvec=lambda y: A.T @ y, dtype=np.float64)

    def create_dense(self):
        return DENSE


class Frugal(Recorder):
    """Computes in the block it is given, and writes every product into one buffer."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(matrix)
        self.buffer = torch.empty(8 * max(matrix.shape), dtype=matrix.dtype)

    def matmat(self, X):
        product = super().matmat(X)
        X.zero_()
        return self.buffer[: product.numel()].view(product.shape).copy_(product)

    def rmatmat(self, Y):
        product = super().rmatmat(Y)
        Y.zero_()
        return self.buffer[: product.numel()].view(product.shape).copy_(product)


class TestOperatorThatComputesInItsBlock(OperatorTestCase):
    def create_operator(self):
        return Frugal(DENSE)

    def create_dense(self):
        return DENSE


class TestWideOperatorOfOnesOwn(OperatorTestCase):
    def create_operator(self):
        return Recorder(DENSE.T.contiguous())

    def create_dense(self):
        return DENSE.T


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decay", [1.0, 0.01])
def test_the_inherited_case_passes_in_half_precision(dtype: torch.dtype, decay: float) -> None:
    """Where values are under the noise floor, a solve that says so is sound."""

    class Half(OperatorTestCase):
        def create_operator(self):
            rows = torch.randn(120, 110, generator=torch.Generator().manual_seed(0))
            return (rows * decay ** torch.arange(120)[:, None]).to(dtype)

        def create_dense(self):
            return self.create_operator()

    Half().test_contract()
    Half().test_products_match_the_dense_matrix()
    Half().test_singular_values_match_the_dense_matrix()


def test_the_inherited_case_fails_for_another_matrix() -> None:
    class Wrong(TestTorchMatrix):
        def create_dense(self):
            return DENSE + 1e-3

    with pytest.raises(AssertionError, match="rounding explains"):
        Wrong().test_products_match_the_dense_matrix()
    with pytest.raises(AssertionError, match="instead of"):
        Wrong().test_singular_values_match_the_dense_matrix()


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_inherited_case_tests_products_of_any_scale(scale: float) -> None:
    class Far(OperatorTestCase):
        wrong = 0.0

        def create_operator(self):
            return DENSE * scale

        def create_dense(self):
            return (DENSE + self.wrong) * scale

    class Wrong(Far):
        wrong = 1e-3

    Far().test_products_match_the_dense_matrix()
    with pytest.raises(AssertionError, match="rounding explains"):
        Wrong().test_products_match_the_dense_matrix()


def test_products_near_the_largest_number_are_linear() -> None:
    assert check_operator(torch.full((8, 8), 9000.0).half()).ok


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.complex64), "complex"),
        (np.zeros((3, 3), dtype=complex), "complex"),
        (torch.zeros(3, 3, dtype=torch.float8_e4m3fn), "16 bits"),
        (torch.zeros(3), "two axes"),
        (np.zeros(3), "two axes, this array has 1"),
        (np.zeros((2, 2, 2)), "two axes, this array has 3"),
        (np.ma.array(np.ones((5, 4)), mask=np.eye(5, 4)), "masked array hides numbers"),
        (torch.zeros(3, 3, device="meta"), "no numbers"),
        ("a matrix", "no linear operator"),
    ],
)
def test_what_is_no_real_operator_is_refused(A: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_operator(A)


def test_an_array_whose_mask_hides_nothing_is_taken() -> None:
    assert check_operator(np.ma.array(DENSE.numpy(), mask=False)).ok
    operator = ScipyLinearOperator((A := DENSE.numpy()).shape, lambda x: A @ x, lambda y: A.T @ y, dtype=A.dtype)
    operator._mask = np.array([True, False])  # its own affair
    assert check_operator(operator).ok


def test_transforms_of_torch_func_are_refused_in_one_line() -> None:
    for transformed in (torch.func.grad(lambda A: svd(A, 2).S.sum()), torch.vmap(lambda v: v * svd(DENSE, 2).S.sum())):
        with pytest.raises(InputError, match="inside no transform"):
            transformed(DENSE)


def test_svd_takes_one_operator_that_has_values() -> None:
    with pytest.raises(InputError, match="svd_batch"):
        svd([DENSE, DENSE], 2)
    for shape in ((0, 5), (5, 0)):
        with pytest.raises(InputError, match="no singular values"):
            svd(torch.zeros(shape))


@pytest.mark.parametrize("method", ["lanczos", "dense"])
@pytest.mark.parametrize(
    "A",
    [DENSE.to_sparse(), DENSE.to_sparse_csr(), DENSE.numpy().astype(np.longdouble), DENSE.numpy().astype(object)],
    ids=["coo", "csr", "longdouble", "object"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_and_unusual_matrices_are_taken(A: object, method: str) -> None:
    torch.testing.assert_close(svd(A, 2, tol=1e-9, method=method).S, torch.linalg.svdvals(DENSE)[:2])


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_csr_matrix_multiplies_as_one_both_ways(dtype: torch.dtype) -> None:
    """As COO it takes ten times as long; in half precision that is all that torch has."""
    dense = torch.where(torch.randn(30, 20, generator=torch.Generator().manual_seed(0)) > 1.0, 1.5, 0.0).to(dtype)
    operator = as_operator(dense.to_sparse_csr().requires_grad_())
    assert isinstance(operator, MatrixOperator)
    layout = torch.sparse_coo if dtype is torch.bfloat16 else torch.sparse_csr
    assert operator.matrix.layout is operator.transpose.layout is layout
    for product, factor in ((operator.matmat, dense), (operator.rmatmat, dense.T)):
        wide = torch.randn(6, 2 * factor.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
        for block in (wide[:3, : factor.shape[1]].T, wide[::2, ::2].T):
            allowed = 16 * torch.finfo(dtype).eps
            torch.testing.assert_close(product(block), factor @ block, rtol=allowed, atol=allowed)
            assert not product(block).requires_grad


def test_products_coarser_than_declared_are_named() -> None:
    """Declared as float64, their rounding would look like a wrong transpose."""
    with pytest.raises(
        OperatorError, match=r"torch.float32, coarser than the torch.float64 that the operator declares"
    ):
        svd(_spoiled(lambda product: product.float()), 2)


@pytest.mark.parametrize("exact", [0.0, 1.0])
def test_products_coarser_than_declared_are_named_by_the_check(exact: float) -> None:
    report = check_operator(_spoiled(lambda product: (exact * product).float()))
    assert "is torch.float32, coarser than the torch.float64 that the operator declares" in str(report)
    assert "transpose" not in str(report)


COARSE = [
    (torch.float64, torch.float32, "torch.float32 or coarser"),
    (torch.float64, torch.bfloat16, "torch.float16 or coarser"),
    (torch.float32, torch.float16, "torch.float16 or coarser"),
    (torch.float32, torch.bfloat16, "torch.float16 or coarser"),
]


@pytest.mark.parametrize(("declared", "inner", "named"), COARSE)
@pytest.mark.parametrize("shape", [(60, 50), (300, 400)])
@pytest.mark.parametrize("decay", [1.0, 0.97])
def test_a_precision_that_hides_behind_the_declared_one_is_named(
    declared: torch.dtype, inner: torch.dtype, named: str, shape: tuple[int, int], decay: float
) -> None:
    class Hidden(Recorder):
        def matmat(self, X):
            return super().matmat(X.to(inner)).to(declared)

        def rmatmat(self, Y):
            return super().rmatmat(Y.to(inner)).to(declared)

    A = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * decay ** torch.arange(shape[1])
    operator = Hidden(A.to(inner))
    operator.dtype = declared
    assert "rmatmat is not the transpose" in str(check_operator(operator))
    other = f"; or the operator computes in {named} instead of the declared {declared} (then declare that)"
    assert other in str(check_operator(operator))
    for method in ("lanczos", "randomized", "dense"):
        result = svd(operator, 3, method=method)
        assert result.status is Status.NOT_ADJOINT
        assert other in result.advice


@pytest.mark.parametrize("shape", [(60, 50), (300, 400), (1500, 1200)])
@pytest.mark.parametrize("decay", [1.0, 0.97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", ["another", "negative", "a shifted row"])
def test_a_wrong_transpose_is_taken_for_no_precision(
    shape: tuple[int, int], decay: float, dtype: torch.dtype, wrong: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(shape, generator=generator, dtype=dtype) * decay ** torch.arange(shape[1])
    others = {"another": torch.randn(shape, generator=generator, dtype=dtype), "negative": -A}
    operator = Recorder(A, others.get(wrong, A.roll(1, dims=0)).T)
    report = str(check_operator(operator))
    assert "rmatmat is not the transpose" in report
    assert "computes in" not in report
    for method in ("lanczos", "randomized"):
        result = svd(operator, 3, method=method)
        assert result.status is Status.NOT_ADJOINT
        assert "computes in" not in result.advice


def test_scipy_products_coarser_than_declared_are_named() -> None:
    A = DENSE.numpy().astype(np.float32)
    ways = {"matvec": lambda x: A @ x.astype(np.float32), "rmatvec": lambda y: A.T @ y.astype(np.float32)}
    operator = ScipyLinearOperator(A.shape, **ways, dtype=np.float64)
    assert "coarser than" in str(check_operator(operator))
    with pytest.raises(OperatorError, match=r"torch.float32, coarser than the torch.float64"):
        svd(operator, 2)
    assert svd(ScipyLinearOperator(A.shape, **ways, dtype=np.float32), 2).converged


@pytest.mark.parametrize("returned", [np.float16, np.float32])
def test_a_scipy_operator_of_float16_has_the_precision_of_its_products(returned: type) -> None:
    A = DENSE.numpy().astype(np.float16)
    ways = {"matvec": lambda x: (A @ x).astype(returned), "rmatvec": lambda y: (A.T @ y).astype(returned)}
    operator = ScipyLinearOperator(A.shape, **ways, dtype=np.float16)
    assert as_operator(operator).dtype is (torch.float16 if returned is np.float16 else torch.float32)
    assert check_operator(operator).ok
    result, expected = svd(operator, 2, tol=1e-2), np.linalg.svd(A.astype(float))[1][:2]
    assert result.converged
    assert result.S.dtype is torch.float32
    np.testing.assert_allclose(result.S, expected, rtol=2e-3 if returned is np.float16 else 1e-5)


def test_a_float16_array_is_multiplied_in_float32() -> None:
    assert as_operator(DENSE.numpy().astype(np.float16)).dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.uint16, torch.int64])
def test_torch_matrices_of_whole_numbers_are_multiplied_in_float64(dtype: torch.dtype) -> None:
    whole = (torch.arange(30).reshape(5, 6) % 7 % 3).to(dtype)
    layouts = [whole] if dtype is torch.uint16 else [whole, whole.to_sparse(), whole.to_sparse_csr()]
    for A in layouts:
        found = svd(A, 2)
        assert (found.S.dtype, as_operator(A).dtype) == (torch.float64, torch.float64)
        assert torch.allclose(found.S, torch.linalg.svdvals(whole.double())[:2])


def test_entries_at_one_place_are_added_up_in_the_type_of_the_matrix() -> None:
    twice = torch.sparse_coo_tensor([[0, 0], [1, 1]], [True, True], (2, 2))
    assert torch.equal(as_operator(twice).matmat(torch.eye(2).double()), twice.to_dense().double())


@pytest.mark.parametrize("way", ["matmat", "rmatmat"])
def test_a_scipy_product_that_is_sparse_is_named(way: str) -> None:
    A = scipy.sparse.csr_array(DENSE.numpy())
    ways = {"matmat": lambda X: A @ X, "rmatmat": lambda Y: A.T @ Y}
    ways[way] = lambda X, known=ways[way]: scipy.sparse.csr_array(known(X))
    operator = ScipyLinearOperator(A.shape, matvec=ways["matmat"], rmatvec=ways["rmatmat"], **ways, dtype=np.float64)
    with pytest.raises(OperatorError, match=r"returned a csr_array: products are dense, as toarray\(\) makes them"):
        svd(operator, 2)


def test_a_sparse_product_is_named() -> None:
    operator = _spoiled(lambda product: product.to_sparse())
    assert "of layout torch.sparse_coo: a dense tensor is needed" in str(check_operator(operator))
    with pytest.raises(OperatorError, match=r"of layout torch.sparse_coo: a dense tensor is needed"):
        svd(operator, 2)


def test_a_transpose_that_fails_is_told_from_one_that_lacks() -> None:
    def fails(y):
        raise TypeError("unsupported operand")

    def unwilling(y):
        return None + y

    checked = r" \(unsupported operand.*\): check rmatvec"
    for rmatvec, cure in ((None, ": give it rmatvec"), (fails, checked), (unwilling, checked)):
        operator = ScipyLinearOperator((4, 4), matvec=lambda x: x, rmatvec=rmatvec, dtype=np.float64)
        with pytest.raises(OperatorError, match=f"cannot apply its transpose{cure}"):
            svd(operator, 2)
        assert re.search(f"cannot apply its transpose{cure}", str(check_operator(operator)))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("device", device, f"device = {device!r} is none of torch")
        for device in (None, 1.5, 10**30, "nowhere", "cuda:77", "meta")
    ]
    + [
        ("dtype", dtype, f"dtype = {dtype!r} is none of torch")
        for dtype in (np.dtype("f8"), np.float64, "float64", None)
    ]
    + [
        ("shape", shape, f"(d_out, d_in), two whole numbers: this one has {shape!r}")
        for shape in (30, None, "ab", (15.0, 12.0), (15.7, 12.2), (15,), (15, 12, 1), {15: 1, 12: 1}, (True, True))
    ],
)
def test_what_an_operator_cannot_be_of_is_refused(name: str, value: object, words: str) -> None:
    operator, batch = Recorder(DENSE), SharingBatch([DENSE], [1.0])
    setattr(operator, name, value)
    setattr(batch, *(("shapes", [value]) if name == "shape" else (name, value)))
    for solve in (lambda: svd(operator, 2), lambda: svd_batch(batch, 2), lambda: check_operator(operator)):
        with pytest.raises(InputError, match=re.escape(words)):
            solve()


@pytest.mark.parametrize("shapes", [None, 5, (shape for shape in [(3, 3)])], ids=lambda shapes: type(shapes).__name__)
def test_shapes_of_a_batch_are_a_list(shapes: object) -> None:
    batch = SharingBatch([DENSE], [1.0])
    batch.shapes = shapes
    with pytest.raises(InputError, match="shapes are a list"):
        svd_batch(batch, 2)


@pytest.mark.parametrize("kind", [np.array, list, torch.Size])
def test_a_shape_may_be_a_list_or_hold_whole_numbers_of_numpy(kind: Any) -> None:
    operator = Recorder(DENSE)
    operator.shape = kind(DENSE.shape)
    assert svd(operator, 2).converged and check_operator(operator).ok


@pytest.mark.parametrize("wrong", ["matvec", "rmatvec"])
def test_a_scipy_product_of_the_wrong_length_is_named(wrong: str) -> None:
    A = DENSE.numpy()
    ways = {"matvec": lambda x: A @ x, "rmatvec": lambda y: A.T @ y} | {wrong: lambda x: np.ones(3)}
    # scipy 1.18 passes on what it is given, and our own check is the first to see it.
    with pytest.raises(OperatorError, match=rf"{wrong}|the product is of shape \(3, "):
        svd(ScipyLinearOperator(A.shape, **ways, dtype=np.float64), 2, method="lanczos")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (1, 1)])
def test_products_that_are_short_by_chance_are_no_defect(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(100):
        A = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
        assert check_operator(A, seed).ok
        if dtype is not torch.bfloat16:
            assert not check_operator(Recorder(A, A.T * 1.001), seed).ok


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_call_that_fails_later_is_reported(call: int) -> None:
    operator = _spoiled(lambda product: 1 / 0 if len(operator.forward) == call else product)
    assert re.match(r"matmat failed on a block of shape \(9, [13]\).*ZeroDivisionError", str(check_operator(operator)))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_operator_without_rows_is_reported(shape: tuple[int, int]) -> None:
    assert "has no products to test" in str(check_operator(torch.zeros(shape)))


def test_an_operator_that_reuses_its_output_passes() -> None:
    memory = torch.empty(200, dtype=torch.float64)
    report = check_operator(_spoiled(lambda product: memory[: product.numel()].view(product.shape).copy_(product)))
    assert report.ok, report


def test_a_half_made_operator_is_told_what_it_lacks() -> None:
    class Half:
        shape, dtype = (3, 3), torch.float32

        def matmat(self, X):
            return X

    class NoDtype:
        shape = (3, 3)
        matmat = rmatmat = abs

    for half, lacks in ((Half(), "device, rmatmat"), (NoDtype(), "dtype, device")):
        with pytest.raises(InputError, match=f"give it {lacks}"):
            as_operator(half)


def test_scipy_operator_that_turns_out_complex_is_refused() -> None:
    operator = ScipyLinearOperator((4, 4), matvec=lambda x: 1j * x, rmatvec=lambda y: -1j * y, dtype=np.float64)
    with pytest.raises(OperatorError, match="complex"):
        svd(operator, 2, method="lanczos")


def test_a_sound_operator_passes() -> None:
    report = check_operator(DENSE)
    assert report.ok
    assert report.adjoint_defect <= report.adjoint_bound
    assert str(report).startswith("ok")


def _spoiled(spoil):
    operator = Recorder(torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    operator.spoil = spoil
    return operator


@pytest.mark.parametrize(
    ("operator", "sentence"),
    [
        (Recorder(DENSE, DENSE.T * 1.001), "rmatmat is not the transpose of matmat"),
        (_spoiled(lambda product: product * float("nan")), "NaN or infinite"),
        (_spoiled(lambda product: product + 1e-6 * torch.randn_like(product)), "not deterministic"),
        (_spoiled(lambda product: product[:-1]), r"of shape \(8, 3\) instead of \(9, 3\)"),
        (_spoiled(lambda product: product.abs()), "not linear"),
        (_spoiled(lambda product: product - product.mean(1, keepdim=True)), "column by column"),
        (_spoiled(lambda product: product.int()), "floating point type is needed"),
        (_spoiled(lambda product: 1 / 0), "ZeroDivisionError"),
    ],
)
def test_each_broken_promise_is_named(operator: Recorder, sentence: str) -> None:
    report = check_operator(operator)
    assert not report.ok
    assert re.search(sentence, str(report))


def _wrong_in(product: str, A: torch.Tensor) -> Recorder:
    if product == "rmatmat":
        return Recorder(A, -A.T)
    operator, seen = Recorder(A), []

    def matmat(X):
        seen.append(X)
        changes = {"deterministic": 1 + 0.5 * len(seen), "linear": 1 + float(X[0, 0] < 0)}
        return (A @ X) * changes[product]

    operator.matmat = matmat
    return operator


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 10.0**e) for e in (-300, -200, -165, 155, 200, 300)]
    + [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.float16, 1.0), (torch.bfloat16, 1.0)],
)
def test_promises_are_tested_at_any_scale(dtype: torch.dtype, scale: float) -> None:
    A = (torch.randn(60, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    assert check_operator(A).ok
    for product, sentence in (
        ("rmatmat", "rmatmat is not the transpose"),
        ("deterministic", "matmat is not deterministic"),
        ("linear", "matmat is not linear"),
    ):
        assert sentence in str(check_operator(_wrong_in(product, A)))


class Wiping(SharingBatch):
    """A batch that adds up products on the way, and may overwrite what it was sent."""

    def __init__(self, matrices: list[torch.Tensor], *, wipes: bool) -> None:
        super().__init__(matrices, [1.0] * len(matrices))
        self.wipes = wipes

    def wiped(self, products, sent):
        for block in sent if self.wipes else ():
            block.zero_()
        return products

    def matmat(self, blocks):
        return self.wiped(super().matmat(blocks), [X for _, X in blocks])

    def rmatmat(self, blocks):
        return self.wiped(super().rmatmat(blocks), [Y for _, Y in blocks])

    def rmatmat_shared(self, Y):
        return self.wiped(super().rmatmat_shared(Y), [Y])

    def matmat_sum(self, blocks):
        return self.wiped(sum(self.matrices[index] @ X for index, X in blocks), [X for _, X in blocks])


@pytest.mark.parametrize("method", ["lanczos", "randomized", "dense", "shared_basis"])
def test_a_solve_minds_no_operator_that_overwrites_its_input(method: str) -> None:
    matrices = [matrix(spectrum("root", 30), (40, 30), seed) for seed in range(2)]
    plain, wiped = (svd_batch(Wiping(matrices, wipes=wipes), 3, method=method) for wipes in (False, True))
    for one, other in zip(plain, wiped, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in "USV")
        assert one.status is other.status


def test_an_adjoint_defect_is_named_from_its_bound_on() -> None:
    A = matrix(spectrum("root", 50), (60, 50)).float()

    def check(stretch: float) -> OperatorReport:
        return check_operator(Recorder(A, (1 + stretch) * A.T))

    bound = check(0.0).adjoint_bound
    stretch = 1e-3 * bound / check(1e-3).adjoint_defect
    assert check(0.8 * stretch).ok
    assert "not the transpose" in str(check(1.5 * stretch))


def test_products_that_lose_their_digits_excuse_no_other_transpose() -> None:
    """Near the smallest numbers of float16 rounding may be a third of a product; random vectors average it out."""
    tiny = (torch.randn(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3e-7).half()
    assert "not the transpose" in str(check_operator(Recorder(tiny, 0.2 * tiny.T)))

"""Matrices are written out from the side that costs fewer row-sweeps, and held against products the other way."""

from pathlib import Path

import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import Status, measure_triplets, norms, svd, svd_batch
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.forecast import forecast
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.reprobe import measure_completeness
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

TALL = matrix(spectrum("harmonic", 40), (400, 40))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_tall_matrix_costs_what_its_transpose_does(dtype: torch.dtype) -> None:
    tall, wide = Recorder(TALL.to(dtype)), Recorder(TALL.T.to(dtype))
    one, other = (svd(operator, 5, tol=1e-2, method="dense", certify="complete") for operator in (tall, wide))
    assert (tall.forward, tall.transposed) == (wide.transposed, wide.forward)
    assert one.work.products == other.work.products
    assert (one.status, one.certificate.claimed) == (other.status, other.certificate.claimed) == (Status.CONVERGED, 5)
    for found, expected in ((one.S, other.S), (one.U.abs(), other.V.abs())):
        torch.testing.assert_close(found, expected)
    measured = measure_triplets(tall, one.U, one.S, one.V, tol=1e-2)[0]
    assert ((one.residuals - measured.residuals).abs() <= one.floor).all()
    claim = one.certificate.completeness
    assert claim.complete
    again = measure_completeness(tall, [one.U], [one.S], [one.V], [claim], tol=1e-2, passes=one.work.passes)[0]
    assert again.upper == pytest.approx(claim.upper)


def test_exact_norms_of_a_tall_matrix_take_its_columns() -> None:
    operator = Recorder(TALL)
    found = norms(operator, exact=True)
    assert (operator.forward, operator.transposed) == ([40], [])
    assert found.frobenius.value == pytest.approx(float(TALL.norm()))
    torch.testing.assert_close(found.rows.value, TALL.norm(dim=1))
    torch.testing.assert_close(found.columns.value, TALL.norm(dim=0))


def test_a_budget_has_to_hold_the_shorter_side() -> None:
    assert svd(TALL, 4, method="dense", max_products=42).work.products == 42
    with pytest.raises(InputError, match="'dense' needs 42 products, max_products allows 41: choose 'lanczos'"):
        svd(TALL, 4, method="dense", max_products=41)


def test_a_wrong_transpose_of_a_tall_matrix_is_seen() -> None:
    wrong = Recorder(TALL, 1.5 * TALL.T)
    result = svd(wrong, 4, method="dense")
    assert result.status is Status.NOT_ADJOINT
    assert wrong.forward == [40, 1] and wrong.transposed == [1, 1]  # both are sent again: neither changed


@pytest.mark.parametrize("way", ["forward", "transposed"])
def test_a_tall_operator_that_changes_is_no_wrong_transpose(way: str) -> None:
    class Changing(Recorder):
        def spoil(self, product: torch.Tensor) -> torch.Tensor:
            came = "forward" if product.shape[0] == self.shape[0] else "transposed"
            return product * (1 + 0.3 * len(getattr(self, came))) if came == way else product

    assert svd(Changing(TALL), 4, method="dense").status is Status.NOT_DETERMINISTIC


def test_operators_that_share_rows_are_counted_by_them() -> None:
    """Three of 60 × 40: 60 shared rows at 3 row-sweeps, or 40 columns at 1, 2 and 3."""
    matrices = [matrix(spectrum("root", 40), (60, 40), seed) for seed in range(3)]
    batch = SharingBatch(matrices, [1.0, 2.0, 3.0])
    for cost, forward in ((3.0, False), (5.0, True)):
        batch.shared_cost = lambda cost=cost: cost
        counted = CountingBatch(batch)
        dense = Materialisation(counted)
        rows = forecast(batch.shapes, counted.costs, cost, k=4, tol=1e-3, width=3, dense_passes=1).dense_rows
        for found, expected in zip(dense.run(), matrices, strict=True):
            torch.testing.assert_close(found, expected)
        assert any(counted.forward) == forward
        assert sum(counted.row_sweeps) == pytest.approx(rows) == pytest.approx(240.0 if forward else 180.0)
        assert len(counted.sweeps) == (3 if forward else 1)
        for result in svd_batch(batch, 4, method="dense"):
            assert result.status is Status.CONVERGED


def test_each_of_several_shapes_goes_its_own_way() -> None:
    operators = [Recorder(matrix(spectrum("root", 20), shape)) for shape in ((50, 20), (20, 50), (20, 20))]
    results = svd_batch(operators, 4, method="dense")
    assert [sum(operator.forward) for operator in operators] == [20, 2, 2]
    assert [sum(operator.transposed) for operator in operators] == [2, 20, 20]
    for result in results:
        assert result.status is Status.CONVERGED
        torch.testing.assert_close(result.S, torch.from_numpy(spectrum("root", 20)[:4].copy()))


def test_no_square_matrix_changes_its_way() -> None:
    batch = SharingBatch([matrix(spectrum("root", 30), (30, 30))], [1.0])
    batch.shared_cost = lambda: 8.0  # a whole prompt's, say
    assert Materialisation(CountingBatch(batch)).ways == [Direction.TRANSPOSED]


def test_a_tall_matrix_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    A = matrix(spectrum("root", 30), (2000, 30))
    whole = svd(A, 4, method="dense", checkpoint=tmp_path)
    sorted(tmp_path.glob("pass-*"))[-1].unlink()
    operator = Recorder(A)
    again = svd(operator, 4, method="dense", checkpoint=tmp_path)
    assert sum(operator.forward) == 1 and sum(operator.transposed) == 1  # one to recognise it, one that was lost
    assert torch.equal(again.U, whole.U) and torch.equal(again.S, whole.S)

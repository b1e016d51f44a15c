"""Many operators in one sweep: each as it would be alone, all counted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers import Progress, Status, SVDResult, svd, svd_batch
from detjac_lanczos.solvers.search import Search
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

NAMES = ["geometric", "spike", "root", "cluster", "flat"]
MATRICES = [matrix(spectrum(name, 50), (60, 50), seed) for seed, name in enumerate(NAMES)]


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized"])
def test_company_changes_nothing(method: str) -> None:
    together = svd_batch(MATRICES, 5, method=method, seed=3)
    for A, result in zip(MATRICES, together, strict=True):
        alone = svd(A, 5, method=method, seed=3)
        assert alone.status is result.status
        assert alone.work.products == result.work.products
        for name in ("U", "S", "V"):
            torch.testing.assert_close(getattr(result, name), getattr(alone, name), rtol=0, atol=1e-10)


def test_operators_of_different_shapes() -> None:
    shapes = [(30, 40), (50, 20), (25, 25)]
    matrices = [matrix(spectrum("geometric", 20), shape) for shape in shapes]
    for method in ("lanczos", "dense", "randomized", "auto"):
        for A, result in zip(matrices, svd_batch(matrices, 4, method=method), strict=True):
            assert result.converged
            assert result.U.shape == (A.shape[0], 4)
            assert result.V.shape == (A.shape[1], 4)
            np.testing.assert_allclose(result.S, spectrum("geometric", 20)[:4], rtol=1e-5)


def test_one_call_serves_all_and_converged_operators_leave() -> None:
    """Passes go to and fro while several share them; an operator alone skips a side where nothing is open."""
    batch = SharingBatch(MATRICES, [5.0, 4.0, 3.0, 2.0, 1.0])
    results = svd_batch(batch, 5, method="lanczos")
    assert batch.calls[0] == ("shared", [3])
    assert len(batch.calls) >= max(result.work.passes for result in results)
    ways = [way for way, blocks in batch.calls[1:] if len(blocks) > 1]
    assert ways == ["forward" if index % 2 == 0 else "transposed" for index in range(len(ways))]
    assert len(batch.calls[1][1]) == 5
    assert len(batch.calls[-1][1]) < 5
    forward = sum(sum(widths) for way, widths in batch.calls if way == "forward")
    transposed = sum(sum(widths) for way, widths in batch.calls if way == "transposed")
    assert forward == sum(result.work.products_forward for result in results)
    assert transposed + 3 * 5 == sum(result.work.products_transposed for result in results)
    for index, result in enumerate(results):
        own = (result.work.products - 3) * batch.rows[index] + 3 * 5.0 / 5
        assert result.work.row_sweeps == pytest.approx(own)


def test_blocks_shrink() -> None:
    """Near the end a block holds fewer directions than the width."""
    operator = Recorder(MATRICES[1])
    svd(operator, 6, method="lanczos", block=4)
    widths = operator.forward + operator.transposed
    assert max(widths) == 4
    assert min(widths) < 4


def test_shared_start_changes_nothing_but_cost() -> None:
    shared = svd_batch(SharingBatch(MATRICES, [1.0] * 5), 5, method="lanczos")
    apart = svd_batch(MATRICES, 5, method="lanczos")
    for one, other in zip(shared, apart, strict=True):
        torch.testing.assert_close(one.S, other.S, rtol=1e-10, atol=0)
        assert one.work.products == other.work.products
        assert one.work.row_sweeps < other.work.row_sweeps


def test_shared_dense_pass_is_counted_once() -> None:
    batch = SharingBatch(MATRICES, [5.0, 4.0, 3.0, 2.0, 1.0])
    results = svd_batch(batch, 5, method="dense")
    assert [way for way, _ in batch.calls if way != "shared"] == ["forward", "forward"]
    assert sum(result.work.row_sweeps for result in results) == pytest.approx(60 * 5.0 + 2 * 15.0)


def test_nothing_is_prepared_for_a_callback_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress takes the relative residuals of every operator after every pass."""
    relative, made = Search.relative.fget, []
    assert relative is not None
    monkeypatch.setattr(Search, "relative", property(lambda search: made.append(search) or relative(search)))
    counts = []
    for callback in (None, lambda progress: None):
        made.clear()
        result = svd(MATRICES[0], 5, method="lanczos", callback=callback)
        counts.append(len(made))
    assert counts[1] - counts[0] >= result.work.passes


def test_callback_sees_progress() -> None:
    seen = []
    svd_batch(MATRICES, 5, method="lanczos", callback=seen.append)
    assert [progress.passes for progress in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].finished == seen[-1].operators == 5
    assert seen[0].values[0].size == 0
    np.testing.assert_allclose(seen[-1].values[0], spectrum("geometric", 50)[:5], rtol=1e-5)
    assert all(residuals.max() <= 1e-3 for residuals in seen[-1].residuals)


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"k": 4, "method": "randomized", "tol": 0.3}, True),
        ({"k": 4, "method": "dense"}, True),
        ({"k": 4, "method": "shared_basis"}, False),
        ({"k": 4, "method": "lanczos", "certify": "complete"}, True),
        ({"energy": 0.5, "method": "lanczos"}, True),
    ],
)
def test_every_method_reports_every_pass_once(options: dict[str, Any], measured: bool) -> None:
    """Each pass is told before the next one, and what was found with the last."""
    seen, told = [], []
    batch = SharingBatch(MATRICES, [5.0, 4.0, 3.0, 2.0, 1.0])

    def callback(progress: Progress) -> None:
        seen.append(progress)
        told.append(len(batch.calls))

    results = svd_batch(batch, **options, callback=callback)
    assert told == list(range(1, len(batch.calls) + 1)) == [progress.passes for progress in seen]
    finished = [progress.finished for progress in seen]
    assert finished == sorted(finished)
    assert finished[-1] == 5
    assert seen[-1].products == sum(result.work.products for result in results)
    assert 0 < seen[0].products <= seen[-1].products
    assert seen[-1].row_sweeps == pytest.approx(sum(result.work.row_sweeps for result in results))
    for result, values, residuals in zip(results, seen[-1].values, seen[-1].residuals, strict=True):
        np.testing.assert_allclose(values[:4], result.S[:4], rtol=1e-6)
        assert (residuals.size > 0) == measured


@pytest.mark.parametrize("method", ["randomized", "dense", "shared_basis", "lanczos"])
def test_what_a_callback_gets_is_its_own(method: str) -> None:
    """Whatever it writes into its arrays, results and later reports are as they would be."""

    def solve(callback: Callable[[Progress], None]) -> list[SVDResult]:
        return svd_batch(SharingBatch(MATRICES, [5.0, 4.0, 3.0, 2.0, 1.0]), 4, method=method, callback=callback)

    seen: list[list[np.ndarray]] = []
    told: list[list[np.ndarray]] = []

    def overwrite(progress: Progress) -> None:
        told.append([array.copy() for array in [*progress.values, *progress.residuals]])
        for array in [*progress.values, *progress.residuals]:
            array[:] = 77.0

    expected = solve(lambda progress: seen.append([*progress.values, *progress.residuals]))
    for one, other in zip(expected, solve(overwrite), strict=True):
        assert torch.equal(one.S, other.S)
    for before, after in zip(seen, told, strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["randomized", "dense", "shared_basis", "lanczos"])
def test_a_callback_that_raises_ends_the_solve(method: str) -> None:
    class Stop(Exception):
        pass

    def callback(progress: Progress) -> None:
        raise Stop

    batch = SharingBatch(MATRICES, [5.0, 4.0, 3.0, 2.0, 1.0])
    with pytest.raises(Stop):
        svd_batch(batch, 4, method=method, callback=callback)
    assert len(batch.calls) == 1


def test_a_scaled_operator_reports_its_own_values() -> None:
    seen = []
    svd(MATRICES[0] * 1e30, 3, method="lanczos", callback=seen.append)
    np.testing.assert_allclose(seen[-1].values[0] / 1e30, spectrum("geometric", 50)[:3], rtol=1e-5)


def test_each_operator_has_its_own_status() -> None:
    rank = np.concatenate([[3.0, 2.0], np.zeros(48)])
    results = svd_batch(
        [MATRICES[0], matrix(rank, (60, 50)), Recorder(MATRICES[1], MATRICES[2].T)], 4, method="lanczos"
    )
    assert [result.status for result in results] == [Status.CONVERGED, Status.BREAKDOWN_EXACT, Status.NOT_ADJOINT]


def test_start_vectors_for_each_operator() -> None:
    cold = svd_batch(MATRICES, 4, method="lanczos")
    warm = svd_batch(MATRICES, 4, method="lanczos", start=[result.V for result in cold])
    assert all(result.converged for result in warm)
    assert sum(result.work.products for result in warm) < sum(result.work.products for result in cold)


def test_batches_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="at least one"):
        svd_batch([], 2)
    with pytest.raises(InputError, match="one dtype"):
        svd_batch([torch.eye(4), torch.eye(4, dtype=torch.float64)], 2)
    with pytest.raises(InputError, match="one for each"):
        svd_batch(MATRICES, 2, start=[torch.ones(50, 2)])


def test_a_batch_that_loses_a_block_is_named() -> None:
    class Losing(SharingBatch):
        def matmat(self, blocks):
            return super().matmat(blocks)[1:]

    with pytest.raises(OperatorError, match="5 blocks returned 4"):
        svd_batch(Losing(MATRICES, [1.0] * 5), 2, method="lanczos")

"""The choice of method: counted, timed where counts are close, replayable."""

import json

import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import auto, counting, svd, svd_batch
from detjac_lanczos.solvers.auto import sweep_rates
from detjac_lanczos.solvers.chunks import chunk_width
from tests.solvers.spectra import SharingBatch, TimedBatch, matrix, spectrum


def tokens(count: int, size: int) -> tuple[list[torch.Tensor], list[float]]:
    """Return as many Jacobians as tokens, the first of which costs most rows."""
    matrices = [matrix(spectrum("spike", size), (size, size), seed).float() for seed in range(count)]
    return matrices, [float(count - index) for index in range(count)]


def test_counts_alone_decide_where_they_are_far_apart() -> None:
    lanczos = svd(matrix(spectrum("root", 300), (300, 300)), 8)
    assert (lanczos.method, lanczos.choices) == ("lanczos", {"method": "lanczos", "block": 3})
    assert "57 row-sweeps expected against 300 of dense" in lanczos.why
    dense = svd(matrix(spectrum("root", 24), (24, 24)), 8)
    assert (dense.method, dense.choices) == ("dense", {"method": "dense"})


@pytest.mark.parametrize(
    ("count", "per_row", "decomposition", "method"),
    [
        (6, 1e-3, 0.01, "lanczos"),
        (10, 1e-3, 0.01, "dense"),
        (10, 1e-3, 0.06, "dense"),
        (10, 1e-3, 0.1, "lanczos"),
        (16, 1e-3, 0.01, "dense"),
    ],
)
def test_time_decides_between(monkeypatch, count: int, per_row: float, decomposition: float, method: str) -> None:
    """57 columns of n (n + 1) / 2 rows against 260 of n rows and n SVDs; near a tie, the one that is counted."""
    matrices, rows = tokens(count, 260)
    batch = TimedBatch(matrices, rows, 1e-4, per_row)
    monkeypatch.setattr(counting, "time", batch)
    monkeypatch.setattr(auto, "decomposition_seconds", lambda shape, dtype, device: decomposition)
    result = svd_batch(batch, 8)[0]
    assert result.method == method
    assert json.loads(json.dumps(result.choices)) == result.choices
    assert result.choices["seconds_per_row"] == pytest.approx(per_row, rel=0.01)
    assert "1.000 ms a row" in result.why


@pytest.mark.parametrize("count", [6, 16])
def test_a_method_that_is_kept_repeats_no_pass(monkeypatch, count: int) -> None:
    """The passes that were timed are the method's own: auto makes the calls that the method makes when asked for."""
    matrices, rows = tokens(count, 260)
    chosen, forced = (TimedBatch(matrices, rows, 1e-4, 1e-3) for _ in range(2))
    monkeypatch.setattr(counting, "time", chosen)
    monkeypatch.setattr(auto, "decomposition_seconds", lambda shape, dtype, device: 0.01)
    result = svd_batch(chosen, 8)[0]
    svd_batch(forced, 8, method=result.method)
    assert "a sweep takes" in result.why
    assert chosen.calls == forced.calls


def test_dense_is_left_only_after_its_passes_have_a_price(monkeypatch, tmp_path) -> None:
    """A second a pass, 22 of Lanczos against three of dense: by the time of its rows alone dense would look dearer.

    One row more shows it. The journal holds what was timed: another day's SVDs change nothing.
    """
    matrices, rows = tokens(10, 260)
    batch, again = (TimedBatch(matrices, rows, 1.0, 1e-3) for _ in range(2))
    monkeypatch.setattr(counting, "time", batch)
    monkeypatch.setattr(auto, "decomposition_seconds", lambda shape, dtype, device: 0.2)
    first = svd_batch(batch, 8, checkpoint=tmp_path)
    assert first[0].method == "dense"
    assert batch.calls[1] == ("shared", [1])
    assert first[0].choices["seconds_per_pass"] == pytest.approx(1.0)
    assert first[0].choices["seconds_per_row"] == pytest.approx(1e-3)
    assert sum(sum(widths) for way, widths in batch.calls if way == "shared") == 260 + 1
    monkeypatch.setattr(auto, "decomposition_seconds", lambda shape, dtype, device: 0.0)
    resumed = svd_batch(again, 8, checkpoint=tmp_path)
    assert len(again.calls) == 1, "the one column that shows whose journal it is"
    assert resumed[0].choices == first[0].choices
    assert all(torch.equal(one.S, other.S) for one, other in zip(first, resumed, strict=True))


def test_choices_are_replayed_without_timing() -> None:
    matrices, rows = tokens(8, 260)
    first = svd_batch(SharingBatch(matrices, rows), 8)
    again = svd_batch(SharingBatch(matrices, rows), 8, choices=first[0].choices)
    assert [result.method for result in again] == [result.method for result in first]
    assert again[0].choices == first[0].choices
    assert again[0].why == "as chosen before"
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.S, other.S)


def test_a_budget_or_a_block_of_the_callers_is_kept() -> None:
    A = matrix(spectrum("root", 24), (24, 24))
    assert svd(A, 4, max_products=40).method == "lanczos"
    wide = svd(matrix(spectrum("root", 300), (300, 300)), 4, block=5)
    assert wide.choices["block"] == 5
    written_out = svd(A, 4, method="dense").choices
    with pytest.raises(InputError, match="'dense' needs 26 products, max_products allows 20: choose 'lanczos'"):
        svd(A, 4, choices=written_out, max_products=20)
    assert svd(A, 4, choices=written_out, max_products=20, method="lanczos").work.products <= 20


def test_rates_are_fitted_and_never_negative() -> None:
    assert sweep_rates([(10.0, 0.02), (110.0, 0.12)]) == pytest.approx((0.01, 0.001))
    assert sweep_rates([(10.0, 0.5), (110.0, 0.11)]) == pytest.approx((0.0, 0.001))
    assert sweep_rates([(50.0, 0.5), (50.0, 0.1)])[0] == 0.0


def test_chunks_are_even_and_hold_about_a_thousand_rows() -> None:
    assert chunk_width(7.0, 576) == 144
    assert chunk_width(1.0, 576) == 576
    assert chunk_width(5000.0, 576) == 1

"""The choice of method: counted, timed where counts are close, replayable."""

import json

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import Status, counting, norms, prices, rival, room, svd, svd_batch
from detjac_lanczos.solvers import forecast as forecasts
from detjac_lanczos.solvers.chunks import chunk_width
from detjac_lanczos.solvers.forecast import forecast
from detjac_lanczos.solvers.prices import sweep_rates
from tests.solvers.spectra import Recorder, SharingBatch, TimedBatch, matrix, spectrum


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


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (60, 60)])
@pytest.mark.parametrize("k", [58, 60])
def test_the_measurement_of_a_whole_space_is_forecast(shape: tuple[int, int], k: int) -> None:
    expected = forecast([shape], [1.0], 1.0, k=k, tol=1e-3, width=3, dense_passes=1)
    work = svd(matrix(spectrum("root", 60), shape), k, method="lanczos").work
    assert expected.lanczos_rows == pytest.approx(work.products, rel=0.02)
    assert expected.lanczos_passes == pytest.approx(work.passes, rel=0.1)


@pytest.mark.parametrize(
    ("count", "per_row", "decomposition", "method"),
    [
        (6, 1e-3, 0.01, "lanczos"),
        (10, 1e-3, 0.01, "dense"),
        (10, 1e-3, 0.06, "dense"),
        (10, 1e-3, 0.2, "lanczos"),
        (16, 1e-3, 0.01, "dense"),
    ],
)
def test_time_decides_between(monkeypatch, count: int, per_row: float, decomposition: float, method: str) -> None:
    """57 columns of n (n + 1) / 2 rows against 260 of n rows and n SVDs; near a tie, the one that is counted."""
    matrices, rows = tokens(count, 260)
    batch = TimedBatch(matrices, rows, 1e-4, per_row)
    monkeypatch.setattr(counting, "time", batch)
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: decomposition)
    result = svd_batch(batch, 8)[0]
    assert result.method == method
    assert json.loads(json.dumps(result.choices)) == result.choices
    assert result.choices["seconds_per_row"] == pytest.approx(per_row, rel=0.01)
    assert "1.000 ms a row" in result.why


@pytest.mark.parametrize(("per_row", "method"), [(1e-9, "dense"), (1e-2, "lanczos")])
def test_the_work_of_the_search_has_its_price(monkeypatch, per_row: float, method: str) -> None:
    """258 columns against 300 rows: where these cost nothing, it is 86 small SVDs against a larger one."""
    batch = TimedBatch([matrix(spectrum("root", 300), (300, 300))], [1.0], 0.0, per_row)
    monkeypatch.setattr(counting, "time", batch)
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: 0.01)
    result = svd_batch(batch, 60)[0]
    assert result.method == method
    assert "the work of the search 0.10 s and the SVDs 0.01 s" in result.why


@pytest.mark.parametrize(
    ("shape", "k", "low", "high", "may_be_dense"),
    [((576, 576), 8, 0.0, 0.02, False), ((1200, 1200), 60, 0.3, 0.4, False), ((1200, 1200), 150, 3.0, 3.5, True)],
)
def test_work_may_cast_doubt_on_fewer_rows(shape, k: int, low: float, high: float, may_be_dense: bool) -> None:
    expected = forecast([shape], [1.0], 1.0, k=k, tol=1e-3, width=3, dense_passes=2)
    assert expected.ratio < 0.5
    assert low < expected.lanczos_work / expected.dense_work < high
    assert expected.may_be_dense == may_be_dense


@pytest.mark.parametrize("count", [6, 16])
def test_a_method_that_is_kept_repeats_no_pass(monkeypatch, count: int) -> None:
    """The passes that were timed are the method's own: auto makes the calls that the method makes when asked for."""
    matrices, rows = tokens(count, 260)
    chosen, forced = (TimedBatch(matrices, rows, 1e-4, 1e-3) for _ in range(2))
    monkeypatch.setattr(counting, "time", chosen)
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: 0.01)
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
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: 0.2)
    first = svd_batch(batch, 8, checkpoint=tmp_path)
    assert first[0].method == "dense"
    assert batch.calls[1] == ("shared", [1])
    assert first[0].choices["seconds_per_pass"] == pytest.approx(1.0)
    assert first[0].choices["seconds_per_row"] == pytest.approx(1e-3)
    assert sum(sum(widths) for way, widths in batch.calls if way == "shared") == 260 + 1
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: 0.0)
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


@pytest.mark.parametrize("goal", [{"threshold": 0.0045}, {"energy": 0.9995}])
def test_a_search_for_an_unknown_number_that_costs_as_much_as_dense_is_left_for_it(
    monkeypatch, tmp_path, goal: dict
) -> None:
    """At most twice the row-sweeps, counted together; the results are those of dense, and choices repeat it alone."""
    A = matrix(spectrum("harmonic", 280), (280, 300), seed=1)
    batch = TimedBatch([A], [1.0], 0.0, 1.0)
    monkeypatch.setattr(counting, "time", batch)
    monkeypatch.setattr(rival, "search_work", lambda *_: 0.0)
    dense = svd(A, **goal, method="dense", certify="complete")
    left, again = (svd_batch(batch, **goal, certify="complete", checkpoint=tmp_path)[0] for _ in range(2))
    assert (left.method, left.choices, left.status) == ("dense", {"method": "dense"}, dense.status)
    assert left.certificate.line == dense.certificate.line
    assert torch.equal(left.S, dense.S) and torch.equal(again.S, left.S)
    rows = A.shape[0]
    assert f"row-sweeps of Lanczos for the {rows} of dense" in left.why
    assert rows <= left.work.products - dense.work.products < rows + 2 * left.work.passes
    assert again.work.products == left.work.products
    replayed = svd(A, **goal, certify="complete", choices=left.choices)
    assert (replayed.work.products, replayed.why) == (dense.work.products, "as chosen before")
    monkeypatch.setattr(room, "_free_bytes", lambda device: 10**6)
    with pytest.raises(InputError, match=r"bytes.*: free some, or choose method 'lanczos' and a new checkpoint$"):
        svd_batch(batch, **goal, certify="complete", checkpoint=tmp_path)


@pytest.mark.parametrize("rows", [[1.0], [1.0, 0.5, 0.1]], ids=["alike", "ragged"])
def test_narrow_passes_of_a_search_for_an_unknown_number_count(monkeypatch, tmp_path, rows: list[float]) -> None:
    """A pass costs what 40 rows do: it is left when its time is that of dense, long before its rows are."""
    A, goal = matrix(spectrum("harmonic", 280), (280, 300), seed=1), {"threshold": 0.0045}
    matrices = [A * 0.5**index for index in range(len(rows))]
    batch, again, dense = (TimedBatch(matrices, rows, 40.0, 1.0) for _ in range(3))
    monkeypatch.setattr(counting, "time", batch)
    left = svd_batch(batch, **goal, checkpoint=tmp_path)
    svd_batch(dense, **goal, method="dense")
    assert left[0].method == "dense"
    assert "left as the search and its work had come to" in left[0].why
    assert (left[0].choices["seconds_per_pass"], left[0].choices["seconds_per_row"]) == pytest.approx((40.0, 1.0))
    assert batch.now < 2 * dense.now + 4 * 43
    resumed = svd_batch(again, **goal, checkpoint=tmp_path)
    assert resumed[0].choices == left[0].choices
    assert all(torch.equal(one.S, other.S) for one, other in zip(resumed, left, strict=True))


@pytest.mark.parametrize(
    ("per_pass", "k", "method", "more"),
    [(0.4, 32, "dense", 4), (0.005, 32, "lanczos", 1), (0.4, 1, "lanczos", 0), (0.4, 4, "lanczos", 1)],
)
def test_many_passes_may_cost_more_than_many_rows(monkeypatch, per_pass: float, k: int, method: str, more: int) -> None:
    """160 columns against 600 rows would be clear: 50 passes against one or two are not, and one more pass tells.

    Dense is chosen after a pass each way and two that show what a pass costs.
    """
    A = matrix(spectrum("root", 600), (600, 600))
    batch, forced = (TimedBatch([A], [1.0], per_pass, 0.01) for _ in range(2))
    monkeypatch.setattr(counting, "time", batch)
    chosen = svd_batch(batch, k)[0]
    assert chosen.method == method
    assert ("a sweep takes 400.0 ms + 10.000 ms a row" in chosen.why) == (method == "dense")
    svd_batch(forced, k, method=method)
    assert len(batch.calls) == len(forced.calls) + more


@pytest.mark.parametrize(("cost", "shared", "sent"), [(40.0, 40.0, [2]), (1.0, 100.0, [1]), (1.0, 1.0, [32])])
def test_the_pass_that_tells_is_unlike_the_others_and_made_once(
    monkeypatch, cost: float, shared: float, sent: list[int]
) -> None:
    """Where all passes are of one row, of whatever cost, one of more rows tells."""
    batch = TimedBatch([matrix(spectrum("root", 600), (600, 600))], [cost], 0.01, 0.01)
    monkeypatch.setattr(batch, "shared_cost", lambda: shared)
    monkeypatch.setattr(counting, "time", batch)
    assert svd_batch(batch, 20, block=1)[0].method == "lanczos"
    assert [widths for way, widths in batch.calls[2:] if way == "shared"] == [sent]


@pytest.mark.parametrize("stays", [{"max_products": 300}, {"start": [torch.eye(600)[:, :1]]}], ids=["budget", "start"])
def test_a_search_that_stays_makes_no_pass_to_learn_what_passes_cost(monkeypatch, stays: dict) -> None:
    A = matrix(spectrum("root", 600), (600, 600))
    batch, forced = (TimedBatch([A], [1.0], 0.4, 0.01) for _ in range(2))
    monkeypatch.setattr(counting, "time", batch)
    assert svd_batch(batch, 32, **stays)[0].method == "lanczos"
    svd_batch(forced, 32, method="lanczos", **stays)
    assert batch.calls == forced.calls


def test_a_hiccup_is_no_costly_pass(monkeypatch) -> None:
    A = matrix(spectrum("root", 600), (600, 600))
    batch = TimedBatch([A], [1.0], 0.005, 0.01)
    batch.hiccups = {2: 1.0}
    monkeypatch.setattr(counting, "time", batch)
    assert svd_batch(batch, 32)[0].method == "lanczos"


def test_a_search_for_an_unknown_number_stays_where_that_is_asked_for_or_nothing_else_fits(
    monkeypatch, tmp_path
) -> None:
    A, goal = matrix(spectrum("harmonic", 280), (280, 280)), {"threshold": 0.0099}
    operator = Recorder(A)
    assert svd(operator, **goal).method == "dense"
    assert sum(operator.forward) + sum(operator.transposed) <= 2 * (280 + 2)
    few = svd(A, threshold=0.3)
    assert (few.method, few.choices) == ("lanczos", {"method": "lanczos", "block": 3})
    for options in ({"max_products": 900}, {"start": A[:2].T}, {"choices": few.choices}):
        kept = svd(A, **goal, **options)
        assert kept.method == "lanczos" and kept.work.products > 280
    monkeypatch.setattr(room, "_free_bytes", lambda device: 10**6)
    kept = svd(A, **goal, checkpoint=tmp_path)
    assert (kept.method, len(kept.S)) == ("lanczos", 101)
    assert "; writing out the matrix takes 5,644,800 bytes (5.38MiB), and 1,000,000 are free" in kept.why
    monkeypatch.undo()
    assert torch.equal(svd(A, **goal, checkpoint=tmp_path).S, kept.S), "what was decided at first holds"


@pytest.mark.parametrize(("per_row", "method"), [(0.0, "dense"), (1.0, "lanczos")])
@pytest.mark.parametrize("goal", [{"k": 8}, {"threshold": 0.99}], ids=str)
def test_a_search_whose_own_work_costs_more_than_dense_is_left(
    monkeypatch, tmp_path, per_row: float, method: str, goal: dict
) -> None:
    """Values from 1 to a half take five times the columns expected: fewer than dense has rows, but far more work."""
    A = matrix(np.linspace(1.0, 0.5, 400), (400, 400))
    batch, again = (TimedBatch([A], [1.0], 1e-4, per_row) for _ in range(2))
    monkeypatch.setattr(counting, "time", batch)
    result = svd_batch(batch, **goal, checkpoint=tmp_path)[0]
    assert (result.method, result.status) == (method, Status.CONVERGED)
    assert ("left as the search and its work had come to" in result.why) == (method == "dense")
    assert "left after" not in result.why
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: 1e3)
    resumed = svd_batch(again, **goal, checkpoint=tmp_path)[0]
    assert torch.equal(resumed.S, result.S) and resumed.choices == result.choices, "by the prices of the first day"
    replayed = svd_batch(again, **goal, choices=result.choices)[0]
    assert torch.equal(replayed.S, result.S)
    exact = torch.linalg.svdvals(A)[: len(result.S)]
    torch.testing.assert_close(result.S, exact, rtol=1e-3, atol=0)


def test_a_batch_is_left_as_a_whole() -> None:
    """What all searches have sent together is held against what they share when they are written out."""
    matrices, rows = tokens(6, 260)
    batch = SharingBatch(matrices, rows)
    results = svd_batch(batch, threshold=0.3)
    alone = svd_batch(SharingBatch(matrices, rows), threshold=0.3, method="dense")
    assert {result.method for result in results} == {"dense"}
    assert sum(result.work.row_sweeps for result in results) < 2.2 * sum(result.work.row_sweeps for result in alone)
    for one, other in zip(results, alone, strict=True):
        assert torch.equal(one.S, other.S)


@pytest.mark.parametrize(("size", "k"), [(24, 8), (300, 40)], ids=["clear", "close"])
def test_dense_that_memory_does_not_hold_is_not_chosen(monkeypatch, tmp_path, size: int, k: int) -> None:
    A = matrix(spectrum("root", size), (size, size))
    with monkeypatch.context() as small:
        small.setattr(room, "_free_bytes", lambda device: 10**3)
        kept = svd(A, k, checkpoint=tmp_path)
        assert (kept.method, kept.choices) == ("lanczos", {"method": "lanczos", "block": 3})
        assert "of dense; writing out the matrix takes" in kept.why and "1,000 are free" in kept.why
    again = svd(A, k, checkpoint=tmp_path)
    assert (again.method, "of dense; there was no room" in again.why) == ("lanczos", True)
    assert torch.equal(again.S, kept.S)


@pytest.mark.parametrize(("k", "method"), [(100, "dense"), (60, "lanczos")])
def test_room_that_is_gone_is_missed_by_dense_alone(monkeypatch, tmp_path, k: int, method: str) -> None:
    """What a journal has decided stays: Lanczos goes on, dense is refused before a product."""
    A = matrix(spectrum("root", 300), (300, 300))
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: 0.0)
    monkeypatch.setattr(forecasts, "_TURN_SECONDS", 0.0)
    first = svd(A, k, checkpoint=tmp_path)
    assert first.method == method
    monkeypatch.setattr(room, "_free_bytes", lambda device: 10**3)
    if method == "lanczos":
        assert torch.equal(svd(A, k, checkpoint=tmp_path).S, first.S)
    else:
        operator = Recorder(A)
        with pytest.raises(InputError, match=r"writing out the matrix takes.*: free some, or .* a new checkpoint$"):
            svd(operator, k, checkpoint=tmp_path)
        assert not operator.forward and not operator.transposed


def test_rates_are_fitted_and_never_negative() -> None:
    assert sweep_rates([(10.0, 0.02), (110.0, 0.12)]) == pytest.approx((0.01, 0.001))
    assert sweep_rates([(10.0, 0.5), (110.0, 0.11)]) == pytest.approx((0.0, 0.001))
    assert sweep_rates([(50.0, 0.5), (50.0, 0.1)]) == pytest.approx((0.0, 0.002)), "the first one warmed up"


def test_chunks_are_even_and_hold_about_a_thousand_rows() -> None:
    assert chunk_width(7.0, 576) == 144
    assert chunk_width(1.0, 576) == 576
    assert chunk_width(5000.0, 576) == 1


@pytest.mark.parametrize("write_out", [lambda A: svd(A, 2, method="dense"), lambda A: norms(A, exact=True)])
def test_what_memory_does_not_hold_is_said_before_the_first_product(monkeypatch, write_out) -> None:
    operator = Recorder(torch.eye(300))
    monkeypatch.setattr(room, "_free_bytes", lambda device: 10**5)
    with pytest.raises(InputError, match=r"^writing out the matrix takes [\d,]+ bytes .*, and 100,000 are free: "):
        write_out(operator)
    assert not operator.forward and not operator.transposed


def test_another_method_is_advised_with_another_checkpoint(monkeypatch, tmp_path) -> None:
    """What begins a search in a folder leaves its options there, dense that is refused included."""
    A = torch.eye(300)
    monkeypatch.setattr(room, "_free_bytes", lambda device: 10**5)
    with pytest.raises(InputError, match=r"free: choose method 'lanczos'$"):
        svd(A, 2, method="dense")
    with pytest.raises(InputError, match=r"free: free some, or choose method 'lanczos' and a new checkpoint$"):
        svd(A, 2, method="dense", checkpoint=tmp_path / "one")
    with pytest.raises(InputError, match="repeat its options"):
        svd(A, 2, method="lanczos", checkpoint=tmp_path / "one")
    assert svd(A, 2, method="lanczos", checkpoint=tmp_path / "another").method == "lanczos"

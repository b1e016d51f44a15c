"""The width of blocks: what a search is expected to take, and the choice by the measured price of a pass."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers import counting, svd, svd_batch
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.width import expected_columns, expected_passes, fastest_width, price
from tests.solvers.spectra import Recorder, TimedBatch, matrix, spectrum

ROWS = [3.0, 2.0, 1.0]
_COSTLY = (1.0, 5e-3)
"""Seconds a pass and a row: a pass without columns costs what 33 columns of all operators cost."""


def batch(per_pass: float, per_row: float, kind: type[TimedBatch] = TimedBatch) -> TimedBatch:
    """Return three matrices with a clock."""
    return kind([matrix(spectrum("root", 300), (300, 300), seed) for seed in range(3)], ROWS, per_pass, per_row)


def solve(timed: TimedBatch, monkeypatch: pytest.MonkeyPatch, **options):
    """Solve by Lanczos, with the clock of the batch."""
    monkeypatch.setattr(counting, "time", timed)
    return svd_batch(timed, 8, method="lanczos", **options)


def test_costly_passes_get_wide_blocks_and_less_time(monkeypatch) -> None:
    fixed, timed = batch(*_COSTLY), batch(*_COSTLY)
    narrow = solve(fixed, monkeypatch, block=3)
    wide = solve(timed, monkeypatch)
    assert wide[0].choices == {"method": "lanczos", "block": 8, "first_block": 3}
    assert wide[0].why == "asked for; a pass takes 1 s and a column of all 0.03 s: blocks of 8"
    assert timed.calls[:5] == [
        ("shared", [3]),
        ("forward", [3, 3, 3]),
        ("forward", [1, 1, 1]),
        ("forward", [1, 1, 1]),
        ("transposed", [8, 8, 8]),
    ]
    assert max(result.work.passes for result in wide) < 0.85 * max(result.work.passes for result in narrow)
    assert timed.now < 0.9 * fixed.now
    for one, other in zip(narrow, wide, strict=True):
        assert torch.allclose(one.S, other.S, rtol=2e-3)
        assert one.status is other.status is Status.CONVERGED


def test_repeated_columns_are_counted(monkeypatch) -> None:
    timed = batch(*_COSTLY)
    results = solve(timed, monkeypatch)
    sent = {
        way: sum(sum(widths) for made, widths in timed.calls if made == way)
        for way in ("forward", "transposed", "shared")
    }
    assert sum(result.work.products_forward for result in results) == sent["forward"]
    assert sum(result.work.products_transposed for result in results) == sent["transposed"] + len(ROWS) * sent["shared"]
    assert max(result.work.passes for result in results) == len(timed.calls)


def test_columns_that_cost_what_a_pass_costs_get_three(monkeypatch) -> None:
    timed = batch(0.5, 0.5 / sum(ROWS))
    results = solve(timed, monkeypatch)
    assert timed.calls[1:4] == [("forward", [3, 3, 3]), ("forward", [1, 1, 1]), ("transposed", [3, 3, 3])]
    assert results[0].choices == {"method": "lanczos", "block": 3}
    assert results[0].why == "asked for"


@pytest.mark.parametrize(
    "options", [{"block": 3}, {"max_products": 200}, {"memory": 10**7}, {"choices": {"block": 3}}], ids=str
)
def test_a_width_that_is_given_or_bounded_is_not_measured(monkeypatch, options) -> None:
    timed = batch(*_COSTLY)
    solve(timed, monkeypatch, **options)
    assert timed.calls[2][0] == "transposed"


def test_short_passes_are_not_measured(monkeypatch) -> None:
    timed = batch(0.4, 1e-6)
    assert solve(timed, monkeypatch)[0].choices["block"] == 3
    assert timed.calls[2][0] == "transposed"


def test_one_hiccup_changes_nothing(monkeypatch) -> None:
    timed = batch(0.0, 0.03)
    timed.hiccups = {2: 3.0}
    assert solve(timed, monkeypatch)[0].choices["block"] == 3
    assert [way for way, _ in timed.calls[:5]] == ["shared", "forward", "forward", "forward", "transposed"]


def test_a_choice_is_replayed_bit_for_bit(monkeypatch) -> None:
    first = solve(batch(*_COSTLY), monkeypatch)
    again = solve(batch(0.0, 1e-6), monkeypatch, choices=first[0].choices)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.S, other.S) and torch.equal(one.U, other.U)
        assert one.choices == other.choices


def test_a_solve_that_was_cut_off_keeps_its_width(monkeypatch, tmp_path) -> None:
    """The seconds of every pass are in the journal, and with them the choice."""
    first = solve(batch(*_COSTLY), monkeypatch, checkpoint=tmp_path)
    for late in sorted(tmp_path.glob("pass-*"))[5:]:
        late.unlink()
    again = solve(batch(0.0, 1e-6), monkeypatch, checkpoint=tmp_path)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.S, other.S) and torch.equal(one.V, other.V)
        assert (one.choices, one.why) == (other.choices, other.why)


def test_a_single_operator_is_measured_too(monkeypatch) -> None:
    timed = TimedBatch([matrix(spectrum("root", 300), (300, 300))], [1.0], 1.0, 1e-3)
    assert solve(timed, monkeypatch)[0].choices["block"] == 8
    assert timed.calls[2:5] == [("forward", [1]), ("forward", [1]), ("transposed", [8])]


class Drifting(TimedBatch):
    """Products grow a little from call to call."""

    def matmat(self, blocks):
        return [product * (1.0 + 1e-3 * len(self.calls)) for product in super().matmat(blocks)]


def test_a_column_that_comes_out_otherwise_ends_the_search(monkeypatch) -> None:
    results = solve(batch(*_COSTLY, kind=Drifting), monkeypatch)
    assert {result.status.value for result in results} == {"not_deterministic"}


def test_a_replayed_width_must_be_one() -> None:
    with pytest.raises(InputError, match="first_block = 0 is no width"):
        svd(
            Recorder(matrix(spectrum("root", 30), (30, 30))),
            2,
            choices={"method": "lanczos", "block": 4, "first_block": 0},
        )


def test_a_width_is_no_more_than_the_operator_has() -> None:
    A = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for options in ({"block": 10**9}, {"choices": {"method": "lanczos", "block": 10**9}}):
        result = svd(A, 2, method="lanczos", **options)
        assert result.converged and result.choices["block"] == 12


def test_decisions_that_no_solve_makes_are_refused() -> None:
    with pytest.raises(InputError, match="choices hold blok, which no solve decides"):
        svd(torch.eye(4), 2, choices={"blok": 1})


@given(st.floats(0.0, 10.0), st.floats(1e-3, 10.0), st.integers(1, 40))
def test_the_fastest_width_is_three_roots_of_the_price(per_pass: float, per_column: float, k: int) -> None:
    most = max(3, min(2 * k, 8))
    found = fastest_width(per_pass, per_column, k=k, tol=1e-3, least=3)
    root = 3.0 * np.sqrt(per_pass / per_column)
    assert 3 <= found <= most
    if root <= 3.0:
        assert found == 3
    elif found > 3:
        assert abs(found - min(root, most)) <= 1.0


def test_a_price_needs_passes_that_differ() -> None:
    assert price((10.0, 1.5), (30.0, 2.5)) == pytest.approx((1.0, 0.05))
    assert price((10.0, 1.5), (12.0, 1.6)) == (0.0, pytest.approx(1.6 / 12))
    assert price((10.0, 1.5), (30.0, 1.4)) == (1.5, 0.0)


def test_expected_columns_never_exceed_the_space() -> None:
    assert expected_columns(30, 1e-6, 2, (30, 40)) <= 70


@pytest.mark.parametrize(
    ("k", "tol", "width", "mean"),
    [
        (1, 1e-2, 3, 11.7),
        (1, 1e-3, 3, 13.1),
        (4, 1e-3, 3, 35.9),
        (8, 1e-2, 3, 49.4),
        (8, 1e-3, 1, 51.7),
        (8, 1e-3, 2, 51.6),
        (8, 1e-3, 3, 58.1),
        (8, 1e-3, 4, 63.7),
        (8, 1e-3, 8, 79.0),
        (8, 1e-5, 3, 74.6),
        (16, 1e-3, 3, 91.1),
        (32, 1e-3, 3, 143.6),
        (32, 1e-5, 3, 172.0),
    ],
)
def test_expected_columns_are_those_spent_on_smollm2(k: int, tol: float, width: int, mean: float) -> None:
    """Mean columns over the tokens of "The bridge out of Marin is the", counted."""
    assert expected_columns(k, tol, width, (576, 576)) == pytest.approx(mean, rel=0.2)


@pytest.mark.parametrize(
    ("width", "mean"), [(2, 28.0), (3, 22.7), (4, 19.6), (6, 15.7), (8, 13.7), (12, 11.9), (16, 11.0)]
)
def test_expected_passes_are_those_made_on_smollm2(width: int, mean: float) -> None:
    """Mean passes over the same tokens, k = 8, tol = 1e-3, counted."""
    assert expected_passes(expected_columns(8, 1e-3, width, (576, 576)), width) == pytest.approx(mean, rel=0.2)

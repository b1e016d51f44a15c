"""Peers are held to what docs/peers.md says: the same true residual, the right values, every product counted."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.peer_solvers import Counted, CountProducts, Found, K, _by_tolerances
from bench.peers import PAGE, RECORD, cheapest, true_residual
from bench.peers_page import page, table
from tests.test_layout import ROOT

VALUES = np.linspace(9.0, 2.0, 12)
A = torch.diag(torch.from_numpy(VALUES))


def test_the_page_is_what_the_command_wrote() -> None:
    assert page(json.loads((ROOT / RECORD).read_text())) == (ROOT / PAGE).read_text(), "run `python -m bench.peers`"


def test_the_worse_residual_of_the_worst_triplet_counts_relative_to_its_value() -> None:
    """(e_1, 2, e_1) is right for A v, and off by 1 for Aᵀ u; (e_3, 4, e_3) is exact."""
    one = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 4.0]])
    vectors, values = np.eye(3)[:, [2, 0]], np.array([4.0, 2.0])
    for matrix in (one, one.T):
        assert true_residual(matrix, vectors, values, vectors) == pytest.approx(0.5)
    assert true_residual(one, vectors[:, :1], values[:1], vectors[:, :1]) == 0


def exact(counted: Counted, which: list[int], columns: int = 2, off: float = 0.0) -> Found:
    """Return triplets by their indices, after a product of so many columns each way."""
    eye = torch.eye(12, dtype=torch.float64)
    counted.rmatmat(counted.matmat(eye[:, :columns]))
    unit = eye[:, which].numpy()
    return unit, VALUES[which] * (1 + off), unit


def test_the_first_attempt_that_is_accurate_counts_alone() -> None:
    """The first has a residual of 2 %, the second exact triplets but not the first, the third other vectors."""

    def solver(counted: Counted, tol: float) -> Iterator[Found]:
        yield exact(counted, list(range(K)), columns=1, off=0.02)
        yield exact(counted, list(range(1, K + 1)), columns=2)
        u, s, v = exact(counted, list(range(K)), columns=1)
        yield u, s, np.roll(v, 1, axis=1)
        yield exact(counted, list(range(K)), columns=3)
        yield exact(counted, list(range(K)), columns=4)

    assert cheapest(A, VALUES, 1e-2, solver) == {"products": 6, "passes": 2, "residual": 0.0}
    found = cheapest(A, VALUES, 0.05, solver)
    assert found is not None and (found["products"], found["residual"]) == (2, pytest.approx(0.02 / 1.02))
    assert cheapest(A, VALUES, 1e-2, lambda counted, tol: iter([exact(counted, list(range(1, K + 1)))])) is None


def test_columns_and_calls_are_counted_by_every_door() -> None:
    counted = Counted(torch.randn(7, 5, dtype=torch.float64))
    scipys = counted.as_scipy()
    X, y = np.random.default_rng(0).standard_normal((5, 3)), np.ones(7)
    np.testing.assert_allclose(scipys.matmat(X), counted.matrix.numpy() @ X)
    np.testing.assert_allclose(scipys.rmatvec(y), counted.matrix.numpy().T @ y)
    assert (counted.products, counted.passes) == (4, 2)
    with CountProducts(counted):
        counted.matrix @ torch.ones(5, 2, dtype=torch.float64)
        counted.matrix.T @ torch.ones(7, 3, dtype=torch.float64)
        torch.ones(4, 7, dtype=torch.float64) @ counted.matrix
        torch.ones(5, 5) @ torch.ones(5, 5)
    assert (counted.products, counted.passes) == (4 + 9, 2 + 3)


def test_attempts_become_finer_are_in_order_and_failures_cost_nothing() -> None:
    asked = []

    def solve(operator: object, own: float) -> Found:
        asked.append(own)
        counted.products += 1
        if len(asked) == 2:
            raise ValueError("no convergence")
        return np.eye(2)[:, ::-1], np.array([1.0, 2.0]), np.eye(2)[::-1]

    counted = Counted(torch.eye(2))
    attempts = _by_tolerances(solve, ValueError)(counted, 1e-3)
    u, s, v = next(attempts)
    assert s.tolist() == [2.0, 1.0] and u.tolist() == v.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    counted.products = 0
    next(attempts)
    assert counted.products == 1 and len(asked) == 3 and asked == sorted(asked, reverse=True)


def test_a_table_has_means_of_what_was_reached_and_ratios_of_what_was_reached_by_both() -> None:
    reached = [{"products": 10, "passes": 4}, {"products": 12, "passes": 5}, {"products": 38, "passes": 6}]
    peer = [{"products": 40, "passes": 9}, {"products": 60, "passes": 10}, {"products": 50, "passes": 11}]
    figures = {
        "ours, width 1": {"0.001": reached, "1e-06": [reached[0], None, reached[0]]},
        "scipy propack": {"0.001": peer, "1e-06": peer},
        "other": {"0.001": [None, None], "1e-06": [None, peer[0]]},
    }
    assert table(figures, "a set").splitlines()[2:] == [
        "| ours, width 1 | 20.0 / 5.0 = 0.40× / 0.50× | 10.0 / 4.0 (1 of 3 not reached) |",
        "| scipy propack | 50.0 / 10.0 | 50.0 / 10.0 |",
        "| other | not reached | 40.0 / 9.0 (1 of 2 not reached) |",
    ]

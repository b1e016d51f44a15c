"""Blocks that widen where values coincide: all copies are found, beside the search, and nothing else changes."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from detjac_lanczos.solvers import Status, svd, svd_batch
from detjac_lanczos.solvers.basis import complete_block
from detjac_lanczos.solvers.strand import _LONGEST, Strand
from detjac_lanczos.solvers.widening import Widening
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum

pytestmark = pytest.mark.usefixtures("one_thread")


def with_copies(count: int, first: int = 0, size: int = 80) -> np.ndarray:
    """Return 1/√j with ``count`` equal values from the ``first`` on."""
    values = spectrum("root", size)
    values[first : first + count] = values[first]
    return values


@pytest.mark.parametrize(("block", "k", "first"), [(1, 5, 0), (1, 8, 2), (2, 6, 0), (2, 8, 2), (3, 7, 0)])
def test_copies_beyond_the_width_are_all_found(block: int, k: int, first: int) -> None:
    values = with_copies(5, first)
    for seed in range(3):
        result = svd(matrix(values, (80, 80), seed), k, tol=1e-4, method="lanczos", block=block, seed=seed)
        assert result.status is Status.CONVERGED
        np.testing.assert_allclose(result.S, values[:k], rtol=1e-4)
        assert result.certificate.claimed == k


@pytest.mark.parametrize(("block", "given"), [(2, 4), (3, 4), (5, 0), (6, 0), (8, 0)])
def test_all_copies_above_a_threshold_are_found(block: int, given: int) -> None:
    """The search begins for one triplet, and follows fewer columns than it began with."""
    values = np.r_[np.ones(5), 0.9 ** np.arange(1, 46)]
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(50, given, generator=generator, dtype=torch.float64) if given else None
        result = svd(
            matrix(values, (60, 50), seed), threshold=0.95, method="lanczos", block=block, start=start, seed=seed
        )
        assert result.converged and result.widened
        np.testing.assert_allclose(result.S, np.ones(5), rtol=1e-5)


@pytest.mark.parametrize(("size", "copies", "other", "block"), [(33, 30, 1e-5, 4), (33, 30, 1e-5, 8), (15, 14, 0.3, 3)])
def test_random_rows_that_fill_up_a_block_rule_out_no_copy(size: int, copies: int, other: float, block: int) -> None:
    """Few distinct values end a Krylov space early; rows that fill its block up are in no triplet yet."""
    values = np.r_[np.ones(copies), np.full(min(size - copies, 3), other)]
    for seed in range(71, 74):
        result = svd(matrix(values, (size, size), seed), threshold=0.9, method="lanczos", block=block, seed=seed)
        assert result.converged and result.widened
        np.testing.assert_allclose(result.S, np.ones(copies), rtol=1e-5)


@pytest.mark.parametrize("known", [1, 2, 3])
def test_given_vectors_are_no_random_columns(known: int) -> None:
    """Four that hold ``known`` of five copies and have no part in the others, with one random column beside them."""
    values = np.r_[np.ones(5), 0.9 ** np.arange(1, 46)]
    for seed in range(3):
        A = matrix(values, (60, 50), seed)
        right = torch.linalg.svd(A).Vh
        start = torch.randn(4, 45, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ right[5:]
        start[:known] += 20 * right[:known]
        result = svd(A, 8, method="lanczos", block=3, start=start.T, seed=seed)
        assert result.converged
        np.testing.assert_allclose(result.S, values[:8], rtol=1e-3)


def test_strands_go_beside_the_search_and_not_after_it(monkeypatch) -> None:
    """Fewer passes than where they wait for all triplets, and without them copies are missed."""
    values = with_copies(5, 2)
    goes_on = Widening.goes_on

    def solved(seed: int):
        return svd(matrix(values, (80, 80), seed), 8, method="lanczos", block=2, seed=seed)

    def waiting(self, triplets, tolerated, **rest):
        ready = self.strand is not None or bool((triplets.norms.max(axis=1) <= tolerated).all())
        return ready and goes_on(self, triplets, tolerated, **rest)

    beside = [solved(seed) for seed in range(4)]
    monkeypatch.setattr(Widening, "goes_on", waiting)
    after = [solved(seed) for seed in range(4)]
    monkeypatch.setattr(Widening, "goes_on", lambda *_, **__: False)
    never = [solved(seed) for seed in range(4)]
    for one, other in zip(beside, after, strict=True):
        np.testing.assert_allclose(one.S, values[:8], rtol=1e-3)
        np.testing.assert_allclose(other.S, values[:8], rtol=1e-3)
    assert sum(float(result.S[6]) < 0.9 * values[6] for result in never) > 0, "two columns see two copies"
    assert sum(r.work.passes for r in beside) < 0.85 * sum(r.work.passes for r in after)
    assert sum(r.work.products for r in beside) < 1.05 * sum(r.work.products for r in after)


def test_without_a_cluster_no_bit_changes(monkeypatch) -> None:
    start = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    goals = [{"k": 1}, {"k": 8}, {"k": 8, "start": start}, {"threshold": 0.4}, {"energy": 0.5}]
    cases = [(name, goal, block) for name in ("root", "spike") for goal in goals for block in (1, 2, 3, 8)]

    def solved() -> list:
        return [
            svd(matrix(spectrum(name, 50), (60, 50), 3), method="lanczos", block=block, **goal)
            for name, goal, block in cases
        ]

    first = solved()
    monkeypatch.setattr(Widening, "goes_on", lambda *_, **__: False)
    for one, other in zip(first, solved(), strict=True):
        assert one.widened == ()
        assert torch.equal(one.U, other.U) and torch.equal(one.V, other.V)
        assert one.work.products == other.work.products


def test_what_was_done_is_said() -> None:
    operator = Recorder(matrix(with_copies(4), (80, 80)))
    result = svd(operator, 6, method="lanczos", block=2)
    (first, rows), *_ = result.widened
    sent = [width for pair in zip(operator.transposed, operator.forward, strict=False) for width in pair]
    assert sent[:first] == [2] * (first - 1) + [2 + rows]
    passes, columns = (", ".join(map(str, numbers)) for numbers in zip(*result.widened, strict=True))
    assert f"from pass {passes} on, {columns} more random columns looked for further copies." in result.advice
    assert "\n" not in result.advice


def as_sent(strand: Strand, basis: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """The rows of a strand as a search sends them, where no residual is open."""
    rows = strand.beside(basis[:0], basis, most)
    return complete_block(rows, basis, len(rows), generator)


def test_a_strand_knows_its_part_of_every_copy() -> None:
    """F_j y = Φ_j w_0 on both sides, in a space that knows nothing of y; a copy keeps σ_min(Φ_j) ≤ 1 / ‖w_0‖."""
    A = matrix(with_copies(3, 1, size=60), (70, 60))
    left, values, right = torch.linalg.svd(A)
    known = {0: right[:3], 1: left.T[:3]}
    copy = {0: right[3], 1: left.T[3]}
    generator = torch.Generator().manual_seed(0)
    strand = Strand(2, float(values[3]), generator)
    part, bases = None, dict(known)
    for step in range(7):
        side = step % 2
        rows = as_sent(strand, bases[side], 5, generator)
        bases[side] = torch.cat([bases[side], rows])
        now = (rows @ copy[side]).numpy()
        part = np.linalg.solve(strand._now, now) if part is None else part
        np.testing.assert_allclose(strand._now @ part, now, atol=1e-9)
        assert np.linalg.svd(strand._now, compute_uv=False)[-1] <= 1 / np.linalg.norm(part) + 1e-9
        strand.absorb(rows @ (A if side else A.T), bases[1 - side], 1e-14)
        assert not strand.ended


def test_a_copy_is_excluded_wrongly_by_chance_alone() -> None:
    """One that is there no more often than in 0.1 % of strands; one that is not nearly always within twelve passes."""
    values = with_copies(2, size=40)
    A = matrix(values, (40, 40))
    left, _, right = torch.linalg.svd(A)
    wrong, right_ones, trials = 0, 0, 80
    for there, known in ((True, 1), (False, 2)):
        for seed in range(trials):
            generator = torch.Generator().manual_seed(seed)
            strand = Strand(1, float(values[0]), generator)
            bases = [right[:known], left.T[:known]]
            for step in range(12):
                side = step % 2
                rows = as_sent(strand, bases[side], 1, generator)
                bases[side] = torch.cat([bases[side], rows])
                strand.absorb(rows @ (A if side else A.T), bases[1 - side], 1e-14)
                if strand.ended:
                    break
            wrong += strand.excluded and there
            right_ones += strand.excluded and not there
    assert wrong <= binom.ppf(1 - 1e-6, trials, 1e-3)
    assert right_ones >= 0.95 * trials


@pytest.mark.parametrize("gap", [0.97, 0.7, 0.4])
def test_a_copy_is_there_until_the_last_pass(gap: float) -> None:
    """A strand of two rows beside nothing else, with the one copy: at any distance of what comes next."""
    values = np.r_[1.0, gap * np.arange(2.0, 61.0) ** -0.25]
    excluded, trials = 0, 60
    for seed in range(trials):
        A = matrix(values, (60, 60), seed)
        generator = torch.Generator().manual_seed(seed)
        strand = Strand(2, 1.0, generator)
        bases, passes = [A.new_empty(0, 60), A.new_empty(0, 60)], 0
        while not strand.ended:
            side = passes % 2
            rows = as_sent(strand, bases[side], 8, generator)
            bases[side] = torch.cat([bases[side], rows])
            strand.absorb(rows @ (A if side else A.T), bases[1 - side], 1e-14)
            passes += 1
        assert passes <= _LONGEST and strand.excluded
        excluded += passes < _LONGEST
    assert excluded <= binom.ppf(1 - 1e-6, trials, 1e-3)


@pytest.mark.parametrize("block", [1, 2])
def test_products_are_counted_to_the_last(block: int) -> None:
    A = matrix(with_copies(5), (80, 80))
    free = svd(A, 8, method="lanczos", block=block)
    assert free.widened
    for budget in range(free.widened[0][0] * block - 2, free.work.products + 1, 11):
        operator = Recorder(A)
        result = svd(operator, 8, method="lanczos", block=block, max_products=budget)
        assert sum(operator.forward) + sum(operator.transposed) == result.work.products <= budget
        assert result.status in (Status.BUDGET, Status.CONVERGED)
        assert result.work.products >= budget - 2 or result.converged


def test_restarts_leave_strands_alone() -> None:
    """In the least memory that is taken, all copies are found as well."""
    values = with_copies(5, 2)
    for seed in range(2):
        A = matrix(values, (80, 80), seed)
        result = svd(A, 8, tol=1e-6, method="lanczos", block=2, seed=seed, memory=27 * 2 * 160 * 8)
        assert result.converged and result.widened
        np.testing.assert_allclose(result.S, values[:8], rtol=1e-6)


def test_company_and_a_cut_change_nothing(tmp_path) -> None:
    matrices = [matrix(values, (80, 80), 1) for values in (with_copies(4), spectrum("root", 80))]
    together = svd_batch(SharingBatch(matrices, [1.0] * 2), 6, method="lanczos", block=2, checkpoint=tmp_path)
    assert [bool(result.widened) for result in together] == [True, False]
    for A, result in zip(matrices, together, strict=True):
        alone = svd(A, 6, method="lanczos", block=2)
        assert alone.widened == result.widened
        torch.testing.assert_close(alone.S, result.S, rtol=1e-10, atol=0)
    first = together[0].widened[0][0]
    for path in tmp_path.glob("pass-*"):
        if int(path.stem.split("-")[1]) > first:  # within the first strand
            path.unlink()
    again = svd_batch(SharingBatch(matrices, [1.0] * 2), 6, method="lanczos", block=2, checkpoint=tmp_path)
    for one, other in zip(together, again, strict=True):
        assert torch.equal(one.U, other.U) and torch.equal(one.V, other.V)
        assert (one.widened, one.advice, one.work.products) == (other.widened, other.advice, other.work.products)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fresh_columns_without_a_product_show_the_whole_spectrum(dtype: torch.dtype) -> None:
    values = np.concatenate([np.ones(4), [0.5, 0.4], np.zeros(34)])
    result = svd(matrix(values, (50, 40)).to(dtype), 6, method="lanczos", block=2)
    assert result.widened and result.status is Status.BREAKDOWN_EXACT
    np.testing.assert_allclose(result.S, values[:6], rtol=1e-5)

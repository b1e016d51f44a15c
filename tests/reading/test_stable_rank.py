"""The estimate is unbiased and its interval covers: counted over many independent draws on known spectra."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import DetachedNetwork
from detjac_lanczos.reading import stable_ranks
from detjac_lanczos.reading.stable_rank import surveyed_stable_rank
from detjac_lanczos.solvers import Status, svd
from detjac_lanczos.solvers.batch import as_batch
from detjac_lanczos.solvers.missed import Missed
from detjac_lanczos.solvers.trace_interval import rest_interval
from tests.solvers.spectra import matrix, spectrum

SPECTRA = {
    "harmonic": 1 / torch.arange(1, 65, dtype=torch.float64),
    "flat": torch.ones(64, dtype=torch.float64),
    "one dominant value": torch.tensor([20.0] + [1 / math.sqrt(j) for j in range(1, 64)], dtype=torch.float64),
    "one value beyond the known": torch.tensor([1.0] * 5 + [1e-6] * 59, dtype=torch.float64),
    "two values beyond the known": torch.tensor([1.0] * 6 + [1e-6] * 58, dtype=torch.float64),
    "one and a half values beyond the known": torch.tensor([1.0] * 5 + [0.5**0.5] + [1e-6] * 58, dtype=torch.float64),
    "known entirely": torch.tensor([3.0, 2.0, 1.0] + [0.0] * 61, dtype=torch.float64),
}
KNOWN = 4


class Diagonal:
    """A batch of one operator diag(s): all that the estimate uses."""

    def __init__(self, s: Tensor) -> None:
        self.s, self.dtype, self.device = s, s.dtype, s.device
        self.shapes = [(len(s), len(s))]

    def rmatmat_shared(self, Y: Tensor) -> list[Tensor]:
        return [self.s[:, None] * Y]


def known(s: Tensor) -> SimpleNamespace:
    basis = torch.eye(len(s), dtype=s.dtype)[:, :KNOWN]
    return SimpleNamespace(U=basis, S=s[:KNOWN], V=basis, residuals=torch.zeros(KNOWN, 2), status="converged")


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_cover(name: str, confidence: float) -> None:
    s = SPECTRA[name]
    truth = float(s.square().sum() / s[0] ** 2)
    batch: Any = Diagonal(s)
    draws = 400
    found = [stable_ranks(batch, [known(s)], seed=seed, confidence=confidence)[0] for seed in range(draws)]
    slack = 1e-9 * truth
    covered = sum(one.interval[0] - slack <= truth <= one.interval[1] + slack for one in found)
    assert covered >= draws * confidence - 3 * math.sqrt(draws * confidence * (1 - confidence))
    mean = sum(one.value for one in found) / draws
    spread = math.sqrt(sum((one.value - mean) ** 2 for one in found) / draws)
    assert abs(mean - truth) <= 4 * spread / math.sqrt(draws) + slack


@pytest.mark.parametrize(("k", "products"), [(1, 4), (3, 6), (8, 16), (8, 24)])
@pytest.mark.parametrize("name", ["root", "flat", "harmonic", "spike"])
def test_intervals_cover_where_a_budget_cut_the_search_short(name: str, k: int, products: int) -> None:
    values = spectrum(name, 150)
    A = matrix(values, (150, 150))
    batch: Any = as_batch(A)
    truth, draws, covered = float((values**2).sum() / values[0] ** 2), 60, 0
    for seed in range(draws):
        found = svd(A, k, max_products=products, method="lanczos", seed=seed)
        assert found.status is Status.BUDGET
        (one,) = stable_ranks(batch, [found], seed=seed)
        low, high = one.interval
        assert 1.0 <= low <= one.value <= high
        covered += low <= truth <= high
    assert covered >= draws * 0.95 - 3 * math.sqrt(draws * 0.95 * 0.05)


def test_many_values_beyond_the_known_narrow_the_interval() -> None:
    s = SPECTRA["flat"]
    batch: Any = Diagonal(s)
    low, high = stable_ranks(batch, [known(s)])[0].interval
    assert high / low < 1.25


@pytest.mark.parametrize("total", [0.3, 1.0, 1.2, 7.5, 400.0])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_ends_are_the_totals_at_which_the_test_stops_to_accept(total: float, confidence: float) -> None:
    """A mean so large at the low end, or so small at the high end, has probability (1 − confidence) / 2."""
    for end, tail in zip(rest_interval(total, 16, 1.0, confidence), (chi2.sf, chi2.cdf), strict=True):
        freedom = 16 * max(1.0, end)
        assert tail(total / end * freedom, freedom) == pytest.approx((1 - confidence) / 2, rel=1e-9)


def test_inexact_triplets_leave_the_estimate_unbiased() -> None:
    """With s_j = u_jᵀ J v_j the cross term vanishes whatever the residual."""
    s = SPECTRA["harmonic"]
    generator = torch.Generator().manual_seed(5)
    U, _ = torch.linalg.qr(torch.randn(len(s), KNOWN, generator=generator, dtype=s.dtype))
    W, S, Zh = torch.linalg.svd((s[:, None] * U).T, full_matrices=False)
    found = SimpleNamespace(U=U @ W, S=S, V=Zh.T, residuals=torch.zeros(KNOWN, 2), status="converged")
    batch: Any = Diagonal(s)
    values = [stable_ranks(batch, [found], seed=seed)[0].value * float(S[0]) ** 2 for seed in range(400)]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    assert abs(mean - float(s.square().sum())) <= 4 * spread / math.sqrt(len(values))


def test_every_token_of_a_network(network: DetachedNetwork) -> None:
    batch = network.jacobians()
    triplets, truths = [], []
    for operator in batch.operators:
        U, S, Vh = torch.linalg.svd(operator.dense(), full_matrices=False)
        triplets.append(
            SimpleNamespace(
                U=U[:, :KNOWN], S=S[:KNOWN], V=Vh[:KNOWN].T, residuals=torch.zeros(KNOWN, 2), status="converged"
            )
        )
        truths.append(float(S.square().sum() / S[0] ** 2))
    for one, truth in zip(stable_ranks(batch, triplets, confidence=0.9999), truths, strict=True):
        assert one.interval[0] <= truth <= one.interval[1]
        assert one.interval[0] <= one.value <= one.interval[1]


SURVEYED = Missed(
    share=0.25,
    frobenius=6.0,
    residuals=torch.ones(1),
    values=torch.tensor([3.0]),
    sigma_1=(2.0, 4.0),
    confidence=0.99,
    operators=1,
    probes=16,
    basis=torch.eye(3)[:1],
)
"""‖J‖² = 36, of which 9 are estimated by 16 probes; σ_1 lies between 2 and 4."""


def test_a_survey_divides_each_end_by_the_other_end_of_its_value() -> None:
    found = surveyed_stable_rank(SURVEYED)
    ends = (27 + 9 * 16 / chi2.ppf(0.975, 16)) / 4**2, (27 + 9 * 16 / chi2.ppf(0.025, 16)) / 2**2
    assert found.value == pytest.approx(36 / 3**2)
    assert found.interval == pytest.approx(ends, rel=1e-9)
    assert found.confidence == pytest.approx(0.95 + 0.99 - 1)


def test_no_survey_leaves_a_stable_rank_below_one() -> None:
    assert surveyed_stable_rank(replace(SURVEYED, sigma_1=(2.0, 9.0))).interval[0] == 1


def test_a_zero_operator_has_stable_rank_zero() -> None:
    nothing = replace(SURVEYED, share=0.0, frobenius=0.0, values=torch.zeros(1), sigma_1=(0.0, 0.0))
    assert (surveyed_stable_rank(nothing).value, surveyed_stable_rank(nothing).interval) == (0, (0, 0))
    batch: Any = Diagonal(torch.zeros(64, dtype=torch.float64))
    one = stable_ranks(batch, [known(batch.s)])[0]
    assert (one.value, one.interval) == (0, (0, 0))


def test_an_impossible_confidence_is_refused(network: DetachedNetwork) -> None:
    with pytest.raises(InputError, match="16 probes prove no interval"):
        stable_ranks(network.jacobians(), [], confidence=0.2)
    with pytest.raises(InputError, match="confidence"):
        stable_ranks(network.jacobians(), [], confidence=1.0)

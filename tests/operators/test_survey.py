"""A survey of a network's tokens, and its polish, against the Jacobians written out."""

import pytest
import torch

from detjac_lanczos.operators import detach
from detjac_lanczos.solvers import Status, SummingBatch, flagged, polish, svd_batch
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_tokens_are_surveyed_in_shared_rows_and_polished(make: str) -> None:
    model = getattr(tiny_models, make)(torch.float64)
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(tiny_models.LENGTH, 5))
    batch = network.jacobians()
    assert isinstance(batch, SummingBatch)
    exact = [torch.linalg.svdvals(J.dense()) for J in batch.operators]
    results = svd_batch(batch, 3, method="shared_basis")
    for result, values in zip(results, exact, strict=True):
        assert result.status is Status.ESTIMATE
        assert bool((values[:3] * (1 + 1e-12) >= result.S).all())
    columns = results[0].work.products
    assert sum(result.work.row_sweeps for result in results) == pytest.approx(columns * batch.shared_cost())
    chosen = sorted({*flagged(results), 0, len(batch) - 1})
    polished = polish(batch, results, chosen, tol=1e-8)
    for index in chosen:
        assert polished[index].converged
        assert polished[index].certificate.claimed == 3
        torch.testing.assert_close(polished[index].S, exact[index][:3], rtol=1e-8, atol=0)

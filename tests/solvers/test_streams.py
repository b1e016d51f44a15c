"""What measures was not drawn with what searched: streams of one seed are independent, in every method."""

import pytest
import torch

from detjac_lanczos.solvers import norms, svd
from detjac_lanczos.solvers.streams import Stream
from tests.solvers.spectra import Recorder, matrix, spectrum


def _largest_correlation(rows: torch.Tensor) -> float:
    return float((torch.corrcoef(rows) - torch.eye(len(rows), dtype=rows.dtype)).abs().max())


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2])
def test_streams_and_seeds_share_nothing(seed: int) -> None:
    """Also not with the seed's plain generator, from which a search draws, nor with the same stream of the next one."""
    generators = [torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)]
    generators += [stream.generator(one) for stream in Stream for one in (seed, seed + 1)]
    generators.append(Stream.COMPLETENESS.generator(seed, 1))
    drawn = torch.stack([torch.randn(1000, generator=one, dtype=torch.float64) for one in generators])
    assert _largest_correlation(drawn) < 0.25  # 8 standard deviations
    again = torch.randn(1000, generator=Stream.NORMS.generator(seed), dtype=torch.float64)
    assert bool((drawn == again).all(dim=1).any())


def test_norms_are_not_probed_by_what_the_search_started_from() -> None:
    class Keeping(Recorder):
        """Keeps the cotangents themselves."""

        def rmatmat(self, Y):
            sent.append(Y)
            return super().rmatmat(Y)

    sent: list[torch.Tensor] = []
    A = Keeping(matrix(spectrum("root", 300), (300, 300)))
    norms(A, svd(A, 4, block=4, method="lanczos", seed=3), seed=3, probes=16)
    assert sent[0].shape[1] == 4 and sent[-1].shape[1] == 16
    assert _largest_correlation(torch.cat([sent[0], sent[-1]], dim=1).T) < 0.45  # 8 standard deviations

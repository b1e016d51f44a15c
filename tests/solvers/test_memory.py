"""What solvers hold at most, as torch allocates it, against what is counted for plans."""

import pytest
import torch
from torch import Tensor

from bench.allocations import with_peak
from detjac_lanczos.solvers import svd
from detjac_lanczos.solvers.basis import RowStore
from detjac_lanczos.solvers.batch import IndependentBatch
from detjac_lanczos.solvers.certificate import certify_triplets
from detjac_lanczos.solvers.comparison import Comparison
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.materialisation import Materialisation
from detjac_lanczos.solvers.memory import finishing_bytes, judging_bytes, room_for, searching_bytes
from detjac_lanczos.solvers.operator import as_operator
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.width import expected_room

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(64, 40_000), (30_000, 64)])
def test_a_result_is_measured_in_the_memory_that_is_counted(shape: tuple[int, int]) -> None:
    k, generator = 8, torch.Generator().manual_seed(0)
    U, V, AV, AtU = (torch.randn(k, shape[side], generator=generator).T for side in (0, 1, 0, 1))
    S = torch.linspace(2.0, 1.0, k)
    _, measured, _ = with_peak(lambda: certify_triplets(U, S, V, AV, AtU, tol=1e9, floor=0.0, scale=2.0))
    counted = finishing_bytes(shape, torch.float32, k, triplets=0)
    assert measured <= counted <= 1.01 * measured


class Scaled:
    """A diagonal operator with many columns, never written out."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self.dtype, self.device = shape, torch.float32, torch.device("cpu")
        self.values = 0.9 ** torch.arange(min(shape), dtype=torch.float32)[:, None]

    def matmat(self, X: Tensor) -> Tensor:
        return self.values * X[: self.shape[0]]

    def rmatmat(self, Y: Tensor) -> Tensor:
        return torch.cat([self.values * Y, Y.new_zeros(self.shape[1] - self.shape[0], Y.shape[1])])


def test_a_matrix_that_lanczos_does_not_need_is_never_allocated() -> None:
    shape, k, width = (300, 40_000), 8, 4
    result, measured, _ = with_peak(lambda: svd(Scaled(shape), k=k, block=width))
    assert (result.method, result.status.value) == ("lanczos", "converged")
    room = room_for(
        max(result.work.products_forward, result.work.products_transposed), expected_room(k, 1e-3, width, shape)
    )
    counted = searching_bytes(shape, torch.float32, width=width, room=room, triplets=k + 2)
    counted += judging_bytes(shape, torch.float32, width=width, triplets=k + 2)
    assert measured <= counted < 4 * shape[0] * shape[1]


def test_a_store_grows_by_a_quarter_and_is_counted_as_it_grows() -> None:
    store = RowStore(3, torch.float32, torch.device("cpu"), room=20)
    for count in range(1, 200):
        store.append(torch.zeros(1, 3))
        assert store._storage.shape[0] == room_for(count, 20) <= max(1.25 * count + 1, count + 8, 20)


def test_the_check_of_written_out_matrices_sends_no_more_rows_than_writing_them_did() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(7)]
    operators = [as_operator(matrix) for matrix in matrices]
    for operator in operators:
        operator.cost = lambda: 400.0  # type: ignore[attr-defined]
    batch = CountingBatch(IndependentBatch(operators))
    comparison = Comparison(Materialisation(batch))
    writing = len(batch.sweeps)
    options = Options(
        k=1,
        tol=1e-3,
        width=3,
        later=None,
        timed=False,
        max_products=None,
        seed=0,
        start=None,
        certify="triplets",
        delta=None,
        threshold=None,
        energy=None,
        capacity=None,
    )
    comparison.run(options.seed)
    assert comparison.contradictions(options) == {}
    assert [rows for rows, _ in batch.sweeps[writing:]] == [800.0, 800.0, 800.0, 400.0]
    comparison.matrices[3][:, 1:] *= -1.0
    comparison.run(options.seed)
    assert {index: status.value for index, status in comparison.contradictions(options).items()} == {3: "not_adjoint"}

"""Ragged rows: whatever is swept together gives what each segment gives alone."""

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detjac_lanczos.frozen import layout as layouts
from detjac_lanczos.frozen import sweep
from detjac_lanczos.frozen.layout import Layout, Segment
from detjac_lanczos.frozen.maps import Linear, Mix, Sum
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.sweep import Program, forward, transposed
from detjac_lanczos.models.weights import DenseWeight
from detjac_lanczos.operators import DetachedNetwork, attention, detach, layer, mlp
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (7, 4)


@pytest.fixture(scope="module", params=["llama", "gemma"])
def network(request: pytest.FixtureRequest) -> DetachedNetwork:
    model = getattr(tiny_models, request.param)(bias=True)
    return detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(*LENGTHS))


@st.composite
def segment(draw: Any) -> Segment:
    prompt = draw(st.integers(0, 1))
    position = draw(st.integers(0, LENGTHS[prompt] - 1))
    return Segment(prompt, draw(st.integers(0, position)), position, draw(st.integers(1, 3)), joint=draw(st.booleans()))


def whole(program: Program, segments: list[Segment], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    at = Layout(segments, LENGTHS, torch.device("cpu"))
    given_x = x.clone()
    out = forward(program, x, at)
    given_out = out.clone()
    back = transposed(program, out, at)
    assert torch.equal(x, given_x)
    assert torch.equal(out, given_out)
    return list(out.split([s.width for s in segments])), list(back.split([s.source_rows for s in segments]))


@pytest.mark.parametrize("cells", [1, 40, 16384])
@pytest.mark.parametrize(
    ("source", "target"), [(0, "output"), (1, layer(1)), (1, attention(2)), (0, mlp(1)), (2, "logits")], ids=str
)
@settings(max_examples=12, deadline=None)
@given(segments=st.lists(segment(), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_segments_swept_together_are_as_alone(
    network: DetachedNetwork, source: int, target: Any, cells: int, segments: list[Segment], seed: int
) -> None:
    program = network.jacobian(source=layer(source), target=target).sweeps.program
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(s.source_rows, 24, generator=generator, dtype=torch.float64) for s in segments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "PADDED_CELLS", cells)
        patch.setattr(sweep, "ROWS_AT_ONCE", min(cells, sweep.ROWS_AT_ONCE))
        out, back = whole(program, segments, torch.cat(rows))
        for s, x, together, together_back in zip(segments, rows, out, back, strict=True):
            alone, alone_back = whole(program, [s], x)
            assert (together - alone[0]).norm() <= 1e-13 * alone[0].norm()
            assert (together_back - alone_back[0]).norm() <= 1e-13 * alone_back[0].norm()


def test_products_of_a_mixing_are_padded_to_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [Segment(0, start, 4, 2) for start in (0, 0, 0, 0, 1, 2)]
    for cells, columns in ((40, [8, 4]), (39, [6, 6]), (1, [2] * 6)):
        monkeypatch.setattr(layouts, "PADDED_CELLS", cells)
        at = Layout(segments, LENGTHS, torch.device("cpu"))
        assert [tile.columns for tile in at.square.tiles] == columns


def test_runs_are_forgotten_with_the_positions_they_were_found_for() -> None:
    positions = torch.tensor([0, 0, 0, 1, 1, 1])
    known = len(layouts._runs)
    assert layouts.runs_of(positions).width == 3
    assert len(layouts._runs) == known + 1
    del positions
    gc.collect()
    assert len(layouts._runs) <= known


@pytest.mark.parametrize("name", ["forward", "transposed"])
def test_pruning_to_the_output_position_changes_nothing(network: DetachedNetwork, name: str) -> None:
    """A program prunes at its last mixing; one that ends with a trivial mixing keeps all rows until then."""
    n = LENGTHS[0]
    program = network.jacobian(target=layer(network.blocks - 1)).sweeps.program
    identities = tuple(torch.eye(m, dtype=torch.float64).expand(1, m, m) for m in LENGTHS)
    trivial = Stage((Branch("identity", (Mix(identities, 1),)),), residual=False, block=network.blocks - 1)
    kept = Program((*program.stages, trivial), 24, 24, program.blocks)
    assert kept.last_mixing > program.last_mixing
    for position in (0, n // 2, n - 1):
        at = Layout([Segment(0, 0, position, 24, joint=True)], LENGTHS, torch.device("cpu"))
        if name == "forward":
            x = torch.randn(at.rows, 24, generator=torch.Generator().manual_seed(position), dtype=torch.float64)
            pruned, full = forward(program, x, at), forward(kept, x, at)
        else:
            y = torch.eye(24, dtype=torch.float64)
            pruned, full = transposed(program, y, at), transposed(kept, y, at)
        assert (pruned - full).norm() <= 1e-14 * full.norm()


@pytest.mark.parametrize("kind", ["linear", "sum"])
def test_branches_of_one_map_that_mix_no_positions(kind: str) -> None:
    """Only a row that enters at the output position has a part in it; the map may not overwrite what it reads."""
    W = torch.randn(24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    linear = Linear(DenseWeight(W))
    step = linear if kind == "linear" else Sum(((linear,),))
    program = Program((Stage((Branch("b", (step,)),)),), 24, 24, 1)
    assert program.last_mixing == -1
    segments = [Segment(0, 0, 3, 2, joint=True), Segment(1, 1, 3, 1), Segment(1, 3, 3, 3)]
    at = Layout(segments, LENGTHS, torch.device("cpu"))
    x = torch.randn(len(at.source), 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = torch.cat([x[6:8], torch.zeros_like(x[:1]), x[9:]])
    y = ends + ends @ W.T
    torch.testing.assert_close(forward(program, x, at), y, rtol=1e-12, atol=1e-12)
    back = torch.zeros_like(x)
    back[[6, 7, 9, 10, 11]] = (y + y @ W)[[0, 1, 3, 4, 5]]
    torch.testing.assert_close(transposed(program, y, at), back, rtol=1e-12, atol=1e-12)


def test_work_is_counted_in_rows_through_blocks(network: DetachedNetwork) -> None:
    n, blocks = LENGTHS[0], network.blocks
    assert network.jacobian(0).cost() == pytest.approx((n * (blocks - 1) + 1) / blocks)
    assert network.jacobian(n - 1).cost() == pytest.approx(1)
    assert network.jacobian(0, source=layer(1), target=layer(1)).cost() == pytest.approx(1 / blocks)
    assert network.jacobians().shared_cost() == pytest.approx(sum((m * (blocks - 1) + 1) / blocks for m in LENGTHS))

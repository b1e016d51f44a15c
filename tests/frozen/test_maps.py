"""Primitive maps: each transpose is the adjoint; folding and fusing rewrite a chain without changing its map."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.activations import _RATIOS, _RATIOS_OF_MODULES, ratio
from detjac_lanczos.frozen.experts import Experts
from detjac_lanczos.frozen.fold import fold, fuse, scale_factors
from detjac_lanczos.frozen.layout import Layout, Mixing, Segment, runs_of
from detjac_lanczos.frozen.maps import (
    Bias,
    ColumnScale,
    Gate,
    Linear,
    Map,
    Mix,
    Nested,
    RowScale,
    Sum,
    apply_rowwise,
    transpose,
)
from detjac_lanczos.frozen.sweep import linear_part
from detjac_lanczos.models.weights import DenseWeight

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (5, 3)
POSITIONS = sum(LENGTHS)


class Draw:
    """Random maps over the positions of two prompts."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def rowwise(self, kind: str, width: int) -> tuple[Map, int]:
        """One map on rows of a width, and the width it gives."""
        match kind:
            case "row":
                return RowScale(self.normal(POSITIONS).exp()), width
            case "column":
                return ColumnScale(self.normal(width)), width
            case "gate":
                return Gate(self.normal(POSITIONS, width)), width
            case "bias":
                return Bias(self.normal(width)), width
            case "linear":
                out = self.integer(1, 9)
                return Linear(DenseWeight(self.normal(out, width))), out
            case "experts":
                return self.experts(width), width
        f = self.integer(1, 9)
        halves = tuple(
            (Linear(DenseWeight(self.normal(f, width))), Bias(self.normal(f)), Gate(self.normal(POSITIONS, f)))
            for _ in range(2)
        )
        return Sum(halves), f

    def experts(self, width: int) -> Experts:
        """Two experts: some positions meet both, some one, some none."""
        routed = (torch.tensor([0, 2, 3, 6]), torch.tensor([2, 3, 7]))
        chains = [
            (
                RowScale(self.normal(len(at)).exp()),
                Linear(DenseWeight(self.normal(5, width))),
                Bias(self.normal(5)),
                Gate(self.normal(len(at), 5)),
                Linear(DenseWeight(self.normal(width, 5))),
            )
            for at in routed
        ]
        return Experts(tuple(chains), routed, width)

    def mix(self, width: int) -> tuple[Mix, int]:
        kv_heads = next(h for h in (3, 2, 1) if width % h == 0)
        group = self.integer(1, 3)
        mixing = tuple(self.normal(kv_heads * group, n, n).tril() for n in LENGTHS)
        return Mix(mixing, kv_heads), width * group

    def chain(self, kinds: Sequence[str], width: int) -> tuple[Map, ...]:
        steps: list[Map] = []
        for kind in kinds:
            step, width = self.mix(width) if kind == "mix" else self.rowwise(kind, width)
            steps.append(step)
        return tuple(steps)


def layout(width: int = 2) -> Layout:
    """All positions of both prompts."""
    segments = [Segment(p, 0, n - 1, width, joint=True) for p, n in enumerate(LENGTHS)]
    return Layout(segments, LENGTHS, torch.device("cpu"))


def run(chain: Sequence[Map], x: Tensor, positions: Tensor, mixing: Mixing) -> Tensor:
    for step in chain:
        x = step.apply(x, mixing) if isinstance(step, Mix) else step.apply(x, positions)
    return x


def copied(chain: Sequence[Map]) -> tuple[Map, ...]:
    """Return the chain with factors of its own, since folding captured factors writes into them."""

    def one(step: Map) -> Map:
        match step:
            case Gate():
                return Gate(step.g.clone())
            case Mix():
                return Mix(tuple(p.clone() for p in step.probabilities), step.kv_heads, step.transposed)
            case Nested():
                return step.with_chains([copied(part) for part in step.chains])
        return step

    return tuple(map(one, chain))


def dense(chain: Sequence[Map], width: int) -> Tensor:
    """Return the affine map as one matrix over all positions, its constant in the last column."""
    at = layout(1)
    columns = []
    for column in (*torch.eye(POSITIONS * width, dtype=torch.float64), torch.zeros(POSITIONS * width).double()):
        columns.append(run(chain, column.view(POSITIONS, width), at.positions, at.square).flatten())
    return torch.stack(columns, dim=1)


ROWWISE = st.sampled_from(["row", "column", "gate", "bias", "linear", "sum", "experts"])


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["row", "column", "gate", "linear", "sum", "experts", "mix"]),
    width=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_each_transpose_is_the_adjoint(kind: str, width: int, seed: int) -> None:
    draw, at = Draw(seed), layout()
    chain = linear_part(draw.chain([kind], width))
    x = draw.normal(at.rows, width)
    out = run(chain, x, at.positions, at.square)
    y = draw.normal(*out.shape)
    back = run(transpose(chain), y, at.positions, at.square)
    assert back.shape == x.shape
    assert abs((y * out).sum() - (back * x).sum()) <= 1e-13 * out.norm() * y.norm() * x.shape[0] ** 0.5
    for step in chain:
        twice = step.transpose().transpose()
        assert torch.equal(run([twice], x, at.positions, at.square), out)


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(ROWWISE, max_size=4),
    after=st.lists(ROWWISE, max_size=4),
    mixes=st.booleans(),
    width=st.integers(1, 6),
    seed=st.integers(0, 999),
)
@example(before=["gate", "row", "bias", "row"], after=[], mixes=False, width=3, seed=0)
@example(before=["linear", "gate", "column"], after=["column"], mixes=False, width=3, seed=0)
@example(before=["linear", "gate"], after=["gate", "column"], mixes=False, width=3, seed=0)
def test_folding_and_fusing_keep_the_affine_map(
    before: list[str], after: list[str], mixes: bool, width: int, seed: int
) -> None:
    chain = Draw(seed).chain([*before, *(["mix"] if mixes else []), *after], width)
    expected = dense(chain, width)
    captured = copied(chain)
    scale_factors(captured, LENGTHS)
    once = fold(captured)
    size = expected.norm() + 1
    assert (dense(once, width) - expected).norm() <= 1e-12 * size
    assert (dense(fuse(once), width) - expected).norm() <= 1e-12 * size
    # `fold` leaves the factors alone: once more it finds the same map.
    assert torch.equal(dense(fold(captured), width), dense(once, width))
    linear = dense(fuse(linear_part(once)), width)
    assert torch.all(linear[:, -1] == 0)
    assert (linear[:, :-1] - (expected[:, :-1] - expected[:, -1:])).norm() <= 1e-12 * size
    back = dense(
        fuse(transpose(once)),
        run(chain, torch.zeros(POSITIONS, width).double(), layout(1).positions, layout(1).square).shape[1],
    )
    assert (back[:, :-1].T - linear[:, :-1]).norm() <= 1e-12 * size


@settings(max_examples=40, deadline=None)
@given(before=st.lists(ROWWISE, max_size=3), absorber=st.sampled_from(["gate", "mix", "sum"]), seed=st.integers(0, 999))
def test_one_absorber_swallows_every_row_scale(before: list[str], absorber: str, seed: int) -> None:
    chain = Draw(seed).chain(["row", *before, absorber, "linear", "row", "column"], 4)
    assert not any(isinstance(step, RowScale) for step in fold(chain))


@pytest.mark.parametrize("widths", [(4, 4, 4), (4, 2, 6), (3, 4, 1)])
def test_columns_share_the_rows_of_a_gate(widths: tuple[int, ...]) -> None:
    places = zip(widths, ((0, 0), (0, 2), (1, 1)), strict=True)
    segments = [Segment(prompt, start, LENGTHS[prompt] - 1, width) for width, (prompt, start) in places]
    positions = Layout(segments, LENGTHS, torch.device("cpu")).positions
    assert runs_of(positions).width == math.gcd(*widths)
    draw = Draw(0)
    gate, x = Gate(draw.normal(POSITIONS, 5)), draw.normal(len(positions), 5)
    expected = gate.apply(x, positions)
    assert torch.equal(gate.multiply_(x, positions), expected)
    assert torch.equal(x, expected)


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(ROWWISE, max_size=4), width=st.integers(1, 6), seed=st.integers(0, 999))
@example(kinds=["sum"], width=3, seed=0)
@example(kinds=["experts"], width=3, seed=0)
def test_what_is_added_is_added_once(kinds: list[str], width: int, seed: int) -> None:
    draw, at = Draw(seed), layout()
    chain = draw.chain(kinds, width)
    x = draw.normal(at.rows, width)
    expected = run(chain, x, at.positions, at.square)
    add = draw.normal(*expected.shape)
    for steps in (chain, fuse(chain)):
        found = apply_rowwise(steps, x, at.positions, add.clone())
        assert (found - (expected + add)).norm() <= 1e-12 * (expected.norm() + add.norm())


def test_a_sum_with_the_identity_leaves_its_rows_alone() -> None:
    """An empty chain gives rows of its own: the other chains of the sum are added to them in place."""
    draw, at = Draw(0), layout()
    x = draw.normal(at.rows, 3)
    given = x.clone()
    for chains in (((), (ColumnScale(2 * torch.ones(3).double()),)), ((), ())):
        found = Sum(chains).apply(x, at.positions)
        assert torch.equal(x, given)
        assert torch.equal(found, 3 * given if chains[1] else 2 * given)


@pytest.mark.parametrize("kinds", [["column", "linear"], ["linear", "gate"], ["linear", "column"]])
def test_a_fused_gemm_cannot_be_transposed(kinds: list[str]) -> None:
    fused = fuse(Draw(0).chain(kinds, 3))
    with pytest.raises(ValueError, match="before it is fused"):
        transpose(fused)


def test_a_mixing_needs_its_segments() -> None:
    with pytest.raises(ValueError, match="segments"):
        apply_rowwise(Draw(0).chain(["mix"], 4), torch.zeros(POSITIONS, 4), layout(1).positions)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "GELUTanh": lambda: nn.GELU(approximate="tanh"),
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Hardswish": nn.Hardswish,
    "Tanh": nn.Tanh,
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
    "PReLU": nn.PReLU,
    "ClippedGELUActivation": lambda: transformers_activation("ClippedGELUActivation")(-10, 10),
}
LONG = np.longdouble
PI = LONG("3.14159265358979323846264338327950288")
XIELU = "XIELUActivation"
"""Written with expm1(min(z, −1e-6)), it has a step of its own at 0."""


def transformers_activation(name: str) -> Any:
    from transformers import activations

    return getattr(activations, name)


def activation(name: str, dtype: torch.dtype = torch.float64) -> Any:
    return ACTIVATIONS.get(name, lambda: transformers_activation(name)())().to(dtype)


@pytest.mark.parametrize("name", sorted(_RATIOS | _RATIOS_OF_MODULES))
def test_ratios_are_act_over_z(name: str) -> None:
    z = torch.linspace(-19, 19, 400, dtype=torch.float64)
    act = activation(name)
    if name != XIELU:
        z = torch.cat([z, torch.tensor([1e-12, -1e-12, 1e-300, -1e-300]).double()])
    assert torch.all((ratio(act, z) * z - act(z)).abs() <= 1e-13 * z.abs())
    zero = ratio(act, torch.zeros(1, dtype=torch.float64))
    assert torch.isfinite(zero).all()
    if name != XIELU:
        assert zero * 0 == act(torch.zeros(1, dtype=torch.float64))


def relu_like(slope: float) -> Callable[[Any], Any]:
    return lambda z: np.where(z > 0, 1, slope)


def normal_integral(z: Any) -> Any:
    """Return Φ(z) − 1/2 by its series."""
    return (z - z**3 / 6 + z**5 / 40 - z**7 / 336 + z**9 / 3456) / np.sqrt(2 * PI)


NEAR_ZERO: dict[str, tuple[float, Callable[[Any], Any]]] = {
    "Hardswish": (0.5, lambda z: (z + 3) / 6),
    "LinearActivation": (1.0, np.ones_like),
    "MishActivation": (0.6, lambda z: np.tanh(np.log1p(np.exp(z)))),  # tanh ln 2 = (4 − 1)/(4 + 1)
    "Tanh": (1.0, lambda z: np.tanh(z) / z),
    "AccurateGELUActivation": (0.5, lambda z: (1 + np.tanh(np.sqrt(2 / PI) * (z + LONG("0.044715") * z**3))) / 2),
    "ClippedGELUActivation": (0.5, lambda z: LONG(0.5) + normal_integral(z)),
    "LeakyReLU": (0.1, relu_like(0.1)),
    "PReLU": (0.25, relu_like(0.25)),
    "ReLU6": (0.0, relu_like(0.0)),
}
"""The limit at 0 (from the left at a kink), and act(z)/z in extended precision."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(NEAR_ZERO))
def test_ratios_near_zero_are_exact_but_for_rounding(name: str, dtype: torch.dtype) -> None:
    limit, exact = NEAR_ZERO[name]
    sizes = torch.logspace(math.log2(torch.finfo(dtype).smallest_normal), -4, 200, 2, dtype=torch.float64)
    z = torch.cat([sizes, -sizes]).to(dtype)
    act = activation(name, dtype)
    expected = exact(z.double().numpy().astype(LONG))
    apart = np.abs(ratio(act, z).double().numpy() - expected)
    assert np.all(apart <= 4 * torch.finfo(dtype).eps * np.abs(expected))
    assert ratio(act, torch.zeros(1, dtype=dtype)).double() == pytest.approx(limit, rel=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_ratio_of_xielu_has_the_limit_of_what_it_stands_for(dtype: torch.dtype) -> None:
    """α (expm1 z − z)/z + β on the left, α z + β on the right, β at 0; its own −1e-6 in place of z stays exact."""
    act = activation(XIELU, dtype)
    alpha_p, alpha_n = (np.log1p(np.exp(p.detach().double().numpy().astype(LONG))) for p in (act.alpha_p, act.alpha_n))
    z = torch.logspace(-5, 0, 200, dtype=dtype)
    long = z.double().numpy().astype(LONG)
    right, left = alpha_p * long + 0.5, (0.5 + alpha_n) * (np.expm1(-long) / -long - 1) + 0.5
    for rows, expected in ((z, right), (-z, left)):
        assert np.abs(ratio(act, rows).detach().double().numpy() - expected).max() <= 8 * torch.finfo(dtype).eps
    assert ratio(act, torch.zeros(1, dtype=dtype)) == 0.5
    step = torch.tensor([-1e-7, -1e-9], dtype=dtype)
    assert torch.allclose(ratio(act, step) * step, act(step), rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["Sigmoid", "LaplaceActivation", "SqrtSoftplusActivation"])
def test_what_is_not_zero_at_zero_has_no_ratio(name: str) -> None:
    act = nn.Sigmoid() if name == "Sigmoid" else activation(name)
    assert act(torch.zeros(1)) != 0
    with pytest.raises(UnsupportedModelError, match=f"{name} is not 0 at z = 0, so that act"):
        ratio(act, torch.ones(1))


def test_a_prelu_has_one_slope() -> None:
    with pytest.raises(UnsupportedModelError, match="PReLU with 3 slopes"):
        ratio(nn.PReLU(3), torch.ones(1, 3, 4))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Tanhshrink"):
        ratio(nn.Tanhshrink(), torch.ones(1))

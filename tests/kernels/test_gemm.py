"""Products with every prologue and epilogue against float64, on every road; a recorded choice of roads is obeyed."""

from collections.abc import Callable, Iterator
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detjac_kernels import linear, linear_transposed, mix, mix_transposed, product_of_few_rows, rms_reciprocal, roads

EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roads, "_table", {})
    monkeypatch.setattr(roads, "_compared", set())
    yield


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    d=st.integers(1, 17),
    f=st.integers(1, 17),
    extras=st.sets(st.sampled_from(["scale", "gate", "out_scale", "add"])),
    backwards=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_float64_to_rounding(
    dtype: torch.dtype, rows: int, d: int, f: int, extras: set[str], backwards: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = draw(generator, f, d)
    width_in, width_out = (f, d) if backwards else (d, f)
    x = draw(generator, rows, width_in)
    shapes = {"scale": (width_in,), "gate": (rows, width_out), "out_scale": (width_out,), "add": (rows, width_out)}
    given_ = {name: draw(generator, *shapes[name]) for name in sorted(extras)}
    wide = torch.promote_types(dtype, torch.float32)
    kept = {name: value.to(dtype if name == "add" else wide) for name, value in given_.items()}
    x, weight = x.to(dtype), weight.to(dtype)
    exact = {name: value.to(torch.float64, copy=True) for name, value in kept.items()}
    given_away = kept.pop("add", None)
    before = [x.clone(), weight.clone(), *(value.clone() for value in kept.values())]
    found = (linear_transposed if backwards else linear)(x, weight, add=given_away, **kept)
    assert all(torch.equal(a, b) for a, b in zip(before, [x, weight, *kept.values()], strict=True))
    w = weight.double() if backwards else weight.double().T
    scale, gate = exact.get("scale", torch.ones(1)), exact.get("gate", torch.ones(1))
    out_scale, add = exact.get("out_scale", torch.ones(1)), exact.get("add", torch.zeros(1))
    expected = ((x.double() * scale) @ w) * gate * out_scale + add
    size = ((x.double() * scale).abs() @ w.abs()) * gate.abs() * out_scale.abs() + add.abs()
    assert found.dtype is dtype
    # Each of at most four roundings and a dot product of the input width adds one ε of the sizes involved.
    assert torch.all((found.double() - expected).abs() <= (4 + width_in) * EPS[dtype] * size)


@pytest.mark.skipif(not roads._onednn_available(), reason="this torch has no oneDNN product")
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 56, 112])
def test_the_roads_agree(rows: int, backwards: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = draw(generator, 576, 192).float()
    weight = weight.t() if backwards else weight
    x = draw(generator, rows, weight.shape[1]).float()
    exact = x.double() @ weight.double().T
    # A sum of d products with independent roundings of half an ε each.
    bar = 0.5 * EPS[torch.float32] * x.shape[1] ** 0.5
    add = draw(generator, *exact.shape).float()
    for road in roads._ROADS.values():
        found, added = road(x, weight), road(x, weight, add.clone())
        assert (found.double() - exact).norm() <= bar * exact.norm()
        assert (added.double() - (exact + add)).norm() <= bar * exact.norm()


@pytest.mark.skipif(not roads._onednn_available(), reason="this torch has no oneDNN product")
def test_a_choice_is_made_once_and_a_recorded_one_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(6, 16), torch.randn(12, 16)
    first = linear(x, weight)
    table = roads.choices()
    assert list(table) == ["f32 xWt 8x16->12"]
    assert torch.equal(linear(x, weight), first)
    taken: list[str] = []
    for name, road in roads._ROADS.items():

        def spy(*args: object, name: str = name, road: object = road) -> Tensor:
            taken.append(name)
            return road(*args)  # type: ignore[operator]

        monkeypatch.setitem(roads._ROADS, name, spy)
    for name in ("default", "onednn"):
        roads.replay({"f32 xWt 8x16->12": name})
        linear(x, weight)
        assert taken[-1] == name
        assert roads.choices()["f32 xWt 8x16->12"] == name
    roads.replay({"f32 xWt 8x16->12": "a road of another version"})
    assert roads.choices()["f32 xWt 8x16->12"] == "onednn"


@pytest.mark.skipif(not roads._onednn_available(), reason="this torch has no oneDNN product")
@pytest.mark.parametrize("fails", [False, True])
def test_a_road_that_disagrees_or_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    x, weight = torch.randn(6, 16), torch.randn(12, 16)
    ready = 1.0001 * (x @ weight.T)

    def onednn(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
        if fails:
            raise RuntimeError("could not create a primitive")
        return ready.clone()

    monkeypatch.setitem(roads._ROADS, "onednn", onednn)
    assert torch.equal(linear(x, weight), roads._default(x, weight))
    assert roads.choices() == {"f32 xWt 8x16->12": "default"}


@pytest.mark.skipif(not roads._onednn_available(), reason="this torch has no oneDNN product")
@pytest.mark.parametrize("agrees", [False, True])
def test_a_recorded_road_is_compared_once_and_not_timed(monkeypatch: pytest.MonkeyPatch, agrees: bool) -> None:
    x, weight = torch.randn(6, 16), torch.randn(12, 16)
    runs = []

    def onednn(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
        runs.append(len(x))
        return (1.0 if agrees else 1.0001) * (x @ weight.T)

    monkeypatch.setitem(roads._ROADS, "onednn", onednn)
    monkeypatch.setattr(roads, "time", None)
    roads.replay({"f32 xWt 8x16->12": "onednn"})
    for _ in range(3):
        torch.testing.assert_close(linear(x, weight), x @ weight.T, rtol=1e-5, atol=1e-6)
    assert roads.choices() == {"f32 xWt 8x16->12": "onednn" if agrees else "default"}
    assert len(runs) == (4 if agrees else 1)


@pytest.mark.skipif(not roads._onednn_available(), reason="this torch has no oneDNN product")
def test_a_recorded_road_of_other_products_is_none() -> None:
    roads.replay({"f32 xWt 8x16->12": "parts"})
    linear(torch.randn(6, 16), torch.randn(12, 16))
    assert roads.choices()["f32 xWt 8x16->12"] in ("default", "onednn")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("part", [lambda w: w[:, 4:20], lambda w: w[::2]])
def test_parts_of_a_wider_matrix_take_the_default_road_whatever_was_chosen(
    monkeypatch: pytest.MonkeyPatch, part: Callable[[Tensor], Tensor], turned: bool
) -> None:
    """A whole matrix of the same shape shares their key; oneDNN multiplies them by its reference, for seconds."""

    def refused(x: Tensor, weight: Tensor) -> Tensor:
        raise AssertionError("oneDNN was given a matrix with gaps")

    monkeypatch.setitem(roads._ROADS, "onednn", refused)
    weight = part(torch.randn(24, 24))
    weight = weight.t() if turned else weight
    x = torch.randn(5, weight.shape[1])
    roads.replay({f"f32 {way} 8x{weight.shape[1]}->{len(weight)}": "onednn" for way in ("xWt", "yW")})
    torch.testing.assert_close(linear(x, weight), x @ weight.T)


@settings(max_examples=40, deadline=None)
@given(
    kv=st.integers(1, 3), group=st.integers(1, 3), q=st.integers(1, 5), k=st.integers(1, 5), columns=st.integers(1, 6)
)
def test_mixing_is_per_head_and_its_transpose_is_its_adjoint(kv: int, group: int, q: int, k: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(kv + 10 * group)
    p, v = draw(generator, kv, group * q, k), draw(generator, kv, k, columns)
    out = mix(p, v)
    for head in range(kv):
        assert torch.allclose(out[head], p[head] @ v[head], rtol=1e-14, atol=1e-14)
    y = draw(generator, *out.shape)
    assert torch.isclose((y * out).sum(), (mix_transposed(p, y) * v).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_the_reciprocal_root_mean_square_is_at_least_float32(dtype: torch.dtype) -> None:
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[2] = 0
    found = rms_reciprocal(x, 1e-5)
    exact = (x.double().square().mean(-1) + 1e-5).rsqrt()
    wide = torch.promote_types(dtype, torch.float32)
    assert found.dtype is wide
    assert torch.all((found.double() - exact).abs() <= 4 * EPS[wide] * exact)


@pytest.mark.skipif(not roads._onednn_available(), reason="this torch has no oneDNN product")
@pytest.mark.parametrize("faster", ["default", "onednn"])
def test_the_faster_road_is_taken_though_it_was_slow_once(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    seconds = {road: iter([9.0, 1.0, 9.0] if road == faster else [2.0] * 3) for road in roads._ROADS}
    seconds["onednn"] = chain([0.0], seconds["onednn"])  # it is compared first
    now = [0.0]

    def taking(road: str) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
            now[0] += next(seconds[road], 0.0)
            return roads._default(x, weight, add)

        return run

    for road in roads._ROADS:
        monkeypatch.setitem(roads._ROADS, road, taking(road))
    monkeypatch.setattr(roads, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    linear(torch.randn(6, 16), torch.randn(12, 16))
    assert list(roads.choices().values()) == [faster]


@pytest.mark.parametrize(("rows", "f"), [(1, 16), (7, 16), (128, 16), (129, 16), (7, 18), (0, 16)])
def test_few_rows_are_multiplied_by_parts_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, rows: int, f: int
) -> None:
    """Other numbers of rows, small matrices, and those that have no equal parts, take the default product."""
    x, weight = torch.randn(rows, 12), torch.randn(f, 12)
    assert torch.equal(product_of_few_rows(x, weight), x @ weight.T)
    assert not roads.choices()
    monkeypatch.setattr(roads, "_LEAST", 1)
    torch.testing.assert_close(product_of_few_rows(x, weight), x @ weight.T)
    served = rows in (1, 7, 128) and f == 16
    assert list(roads.choices()) == ([f"f32 few xWt {8 if rows == 7 else rows}x12->16"] if served else [])
    taken = []
    monkeypatch.setitem(roads._ROADS, "parts", lambda *operands: taken.append(operands) or roads._in_parts(*operands))
    roads.replay(dict.fromkeys(roads.choices(), "parts"))
    torch.testing.assert_close(product_of_few_rows(x, weight), x @ weight.T)
    assert len(taken) == served


@pytest.mark.parametrize("road", ["default", "parts"])
def test_few_rows_have_a_bias_where_their_sums_begin(monkeypatch: pytest.MonkeyPatch, road: str) -> None:
    """By the default product with the bits of torch's own linear map, which a bias added to the sums has not."""
    monkeypatch.setattr(roads, "_LEAST", 1)
    monkeypatch.setattr(roads, "_choose", lambda *_: road)
    x, weight, bias = torch.randn(7, 896), torch.randn(128, 896), torch.randn(128)
    kept = bias.clone()
    found, expected = product_of_few_rows(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    assert torch.equal(found, expected) if road == "default" else torch.allclose(found, expected, 1e-5, 1e-4)
    assert torch.equal(bias, kept)


@pytest.mark.skipif(not roads._onednn_available(), reason="this torch has no oneDNN product")
def test_a_choice_is_for_its_own_shape_and_direction_alone() -> None:
    weight = torch.randn(12, 16)
    for rows, classes in ((5, 1), (8, 1), (9, 2)):
        linear(torch.randn(rows, 16), weight)
        assert len(roads.choices()) == classes
    linear(torch.randn(8, 16), torch.randn(16, 12).t())
    linear(torch.randn(8, 12), torch.randn(16, 12))
    assert len(roads.choices()) == 4


@pytest.mark.parametrize("product", [linear, linear_transposed])
def test_an_option_that_is_none_is_blamed_on_a_public_function(product: Callable[..., Tensor]) -> None:
    with pytest.raises(TypeError, match=r"^linear\(\) got an unexpected keyword argument 'foo'"):
        product(torch.eye(2), torch.eye(2), foo=1)

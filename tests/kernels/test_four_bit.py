"""4-bit weights: the decoder against one written value by value, and products against the decoded matrix."""

import threading
from dataclasses import replace
from functools import partial
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.allocations import with_peak
from detjac_kernels import decoded, four_bit, roads, scratch
from detjac_kernels.four_bit import Packed4, packed_linear, packed_linear_transposed
from tests.kernels.packed import random_packed
from tests.threads import at_once

EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7}


def by_hand(packed: Packed4) -> Tensor:
    """Return the matrix in float64, one value at a time; scales are rounded to float32 where the layout says so."""
    f, d = packed.shape
    values = []
    for i in range(f * d):
        byte = int(packed.codes[i // 2])
        j = i // packed.block
        scale = packed.absmax[j]
        if packed.nested is not None:
            inner = packed.nested
            scale = inner.table[int(scale)] * inner.absmax[j // inner.block] + inner.offset
        values.append(float(packed.table[byte // 16 if i % 2 == 0 else byte % 16] * scale))
    return torch.tensor(values, dtype=torch.float64).view(f, d)


@settings(max_examples=60, deadline=None)
@given(
    f=st.integers(1, 9), d=st.integers(1, 19), block=st.sampled_from([2, 8, 64]), nested=st.booleans(), data=st.data()
)
def test_any_rows_decode_as_written_value_by_value(
    f: int, d: int, block: int, nested: bool, data: st.DataObject
) -> None:
    packed = random_packed(f, d, nested=nested, block=block, inner=8)
    start = data.draw(st.integers(0, f - 1))
    rows = range(start, data.draw(st.integers(start + 1, f)), data.draw(st.integers(1, 3)))
    exact = by_hand(packed)[rows.start : rows.stop : rows.step]
    assert torch.equal(packed.decode(rows, torch.float64), exact)
    assert torch.equal(packed.decode(rows, torch.bfloat16), exact.float().bfloat16())


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 5),
    f=st.integers(0, 17),
    d=st.integers(0, 17),
    nested=st.booleans(),
    extras=st.sets(st.sampled_from(["scale", "gate", "out_scale", "add"])),
    backwards=st.booleans(),
)
def test_products_are_those_of_the_decoded_matrix(
    dtype: torch.dtype, chunk: int, rows: int, f: int, d: int, nested: bool, extras: set[str], backwards: bool
) -> None:
    packed = random_packed(f, d, nested=nested, block=8, seed=f, inner=8)
    w = by_hand(packed).float().to(dtype).double()
    w = w if backwards else w.T
    width_in, width_out = w.shape
    g = torch.Generator().manual_seed(d)
    shapes = {"scale": (width_in,), "gate": (rows, width_out), "out_scale": (width_out,), "add": (rows, width_out)}
    wide = torch.promote_types(dtype, torch.float32)
    kept = {n: torch.randn(shapes[n], generator=g).to(dtype if n == "add" else wide) for n in sorted(extras)}
    x = torch.randn(rows, width_in, generator=g).to(dtype)
    before = [x.clone(), *(value.clone() for value in kept.values())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "CHUNK", chunk)
        found = (packed_linear_transposed if backwards else packed_linear)(x, packed, **kept)
    assert all(torch.equal(a, b) for a, b in zip(before, [x, *kept.values()], strict=True))
    exact = {n: value.double() for n, value in kept.items()}
    scale, gate = exact.get("scale", torch.ones(1)), exact.get("gate", torch.ones(1))
    out_scale, add = exact.get("out_scale", torch.ones(1)), exact.get("add", torch.zeros(1))
    expected = ((x.double() * scale) @ w) * gate * out_scale + add
    size = ((x.double() * scale).abs() @ w.abs()) * gate.abs() * out_scale.abs() + add.abs()
    assert found.dtype is dtype
    # At most four roundings, a dot product of the input width, and (transposed) one more sum for each chunk.
    assert torch.all((found.double() - expected).abs() <= (4 + 2 * width_in) * EPS[dtype] * size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_product_of_many_parts_is_rounded_as_one_of_two(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, eps = random_packed(2048, 64, nested=False), torch.finfo(dtype).eps
    y = torch.randn(7, 2048, generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr(decoded, "CHUNK", packed.shape[0] * packed.shape[1] // 256)
    found = packed_linear_transposed(y, packed)
    exact = y.double() @ packed.decode(range(2048), dtype).double()
    assert found.dtype is dtype
    # a rounding is off by eps / √32 or so (root mean square): that of the parts, and that of the sum
    assert (found.double() - exact).norm() <= 2 * eps / 32**0.5 * exact.norm()


def test_products_in_float32_are_summed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = random_packed(96, 32, nested=True, block=8, inner=8)
    y = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(5, 32)
    for start in range(0, 96, 24):
        expected += y[:, start : start + 24] @ packed.decode(range(start, start + 24), torch.float32)
    monkeypatch.setattr(decoded, "CHUNK", 24 * 32)
    monkeypatch.setattr(roads, "_onednn_available", lambda: False)
    assert torch.equal(packed_linear_transposed(y, packed), expected)


def test_all_layers_share_one_scratch_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    places = set()
    decode = four_bit._decoded

    def watch(packed: Packed4, start: int, stop: int) -> Tensor:
        rows = decode(packed, start, stop)
        places.add(rows.untyped_storage().data_ptr())
        return rows

    monkeypatch.setattr(decoded, "CHUNK", 1024)
    packed_linear(torch.randn(3, 64), random_packed(64, 64, nested=False))
    monkeypatch.setattr(four_bit, "_decoded", watch)
    for f, d in ((64, 64), (128, 32), (40, 64)):
        weight = random_packed(f, d, nested=True, inner=8)
        packed_linear(torch.randn(3, d), weight)
        packed_linear_transposed(torch.randn(3, f), weight)
    assert len(places) == 1


def test_threads_decode_into_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [random_packed(6, 64, nested=True, seed=seed, inner=8) for seed in (0, 1)]
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    alone = [packed_linear(x, packed) for packed in matrices]
    decode, both = four_bit._decoded, Barrier(2, timeout=10)

    def wait_for_the_other(packed: Packed4, start: int, stop: int) -> Tensor:
        rows = decode(packed, start, stop)
        both.wait()
        return rows

    monkeypatch.setattr(four_bit, "_decoded", wait_for_the_other)
    for found, expected in zip(at_once([partial(packed_linear, x, packed) for packed in matrices]), alone, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("change", ["codes", "absmax", "table", "nested"])
def test_tensors_that_do_not_belong_to_the_shape_are_refused(change: str) -> None:
    packed = random_packed(6, 64, nested=True, inner=8)
    assert packed.nested is not None
    cut = (
        replace(packed.nested, absmax=packed.nested.absmax[:-1]) if change == "nested" else getattr(packed, change)[:-1]
    )
    with pytest.raises(ValueError, match=r"shape \(6, 64\)"):
        replace(packed, **{change: cut})


@pytest.mark.parametrize("change", ["codes", "absmax"])
def test_tensors_with_gaps_are_refused(change: str) -> None:
    packed = random_packed(6, 64, nested=False)
    with pytest.raises(ValueError, match="must be contiguous"):
        replace(packed, **{change: getattr(packed, change).repeat_interleave(2)[::2]})


def test_a_block_that_splits_a_byte_is_refused() -> None:
    packed = random_packed(6, 64, nested=False)
    with pytest.raises(ValueError, match="not those of a 4-bit matrix"):
        replace(packed, block=63, absmax=torch.ones(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_a_matrix_passes_through_is_what_is_counted(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_local", threading.local())
    packed = random_packed(512, 512, nested=True, inner=8)
    assert packed.pairs.nbytes == four_bit.PAIRS_BYTES
    _, measured, _ = with_peak(lambda: packed.decode(range(512), dtype))
    counted = decoded.scratch_bytes(512, 512, dtype.itemsize, coded=True)
    assert measured <= counted <= 1.05 * measured

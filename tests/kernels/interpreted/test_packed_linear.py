import inspect
from collections.abc import Callable
from typing import Unpack

import pytest
import torch
from torch import Tensor

from detjac_kernels import four_bit
from detjac_kernels.device import packed_linear as device
from detjac_kernels.device.configurations import Tiles
from detjac_kernels.device.decode import decode_rectangle
from detjac_kernels.four_bit import Packed4
from detjac_kernels.gemm import Around
from tests.kernels.packed import random_packed, relative

EXACT, PAIRS = 1e-6, 2e-3
BARS = {torch.float32: EXACT, torch.bfloat16: 5e-3}
LEFT = Tiles(rows=32, out=128, reduce=64, warps=4, stages=1, weight_left=True, scale_inside=True)
RIGHT = Tiles(rows=64, out=128, reduce=128, warps=4, stages=1, weight_left=False, scale_inside=True)
BEFORE = Tiles(rows=64, out=128, reduce=64, warps=4, stages=1, weight_left=False, scale_inside=False)

KERNEL = {False: device.packed_linear, True: device.packed_linear_transposed}
TWIN = {False: four_bit.packed_linear, True: four_bit.packed_linear_transposed}


def operands(packed: Packed4, transposed: bool, rows: int = 40) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    n, k = packed.shape[::-1] if transposed else packed.shape
    return torch.randn(rows, k, generator=generator), {
        "scale": torch.rand(k, generator=generator) + 0.5,
        "gate": torch.randn(rows, n, generator=generator),
        "out_scale": torch.randn(n, generator=generator),
        "add": torch.randn(rows, n, generator=generator),
    }


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chosen", [LEFT, RIGHT, BEFORE], ids=["weight left", "weight right", "scaled before"])
@pytest.mark.parametrize(
    ("shape", "nested"), [((256, 256), True), ((200, 320), True), ((200, 320), False)], ids=["even", "ragged", "plain"]
)
def test_exact_table(dtype: torch.dtype, transposed: bool, chosen: Tiles, shape: tuple[int, int], nested: bool) -> None:
    packed = random_packed(*shape, nested=nested)
    x, around = operands(packed, transposed)
    x = x.to(dtype)
    got = KERNEL[transposed](x, packed, **around, chosen=chosen)
    assert relative(got.float(), TWIN[transposed](x.float(), packed, **around)) <= BARS[dtype]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["scale", "gate", "out_scale", "add", None])
def test_each_neighbour_alone(transposed: bool, name: str | None) -> None:
    packed = random_packed(128, 192, nested=True)
    x, around = operands(packed, transposed, rows=9)
    alone = {} if name is None else {name: around[name]}
    got = KERNEL[transposed](x, packed, **alone, chosen=LEFT)
    assert relative(got, TWIN[transposed](x, packed, **alone)) <= EXACT


@pytest.mark.parametrize("transposed", [False, True])
def test_row_scale_and_a_gate_per_position(transposed: bool) -> None:
    packed = random_packed(128, 128, nested=True)
    x, around = operands(packed, transposed)
    position = torch.arange(len(x)) * 7 % 5
    row_scale, gate = torch.rand(len(x)) + 0.5, around["gate"][:5]
    got = KERNEL[transposed](x, packed, row_scale=row_scale, gate=gate, gate_index=position, chosen=LEFT)
    expected = TWIN[transposed](x * row_scale[:, None], packed, gate=gate[position])
    assert relative(got, expected) <= EXACT


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_reduction_in_parts(transposed: bool, nested: bool) -> None:
    packed = random_packed(*((320, 192) if transposed else (192, 320)), nested=nested)
    x, around = operands(packed, transposed)
    got = KERNEL[transposed](x, packed, **around, chosen=LEFT, split=3)
    assert relative(got, TWIN[transposed](x, packed, **around)) <= EXACT
    again = KERNEL[transposed](x, packed, **around, chosen=LEFT, split=3)
    assert torch.equal(got, again)


@pytest.mark.parametrize("transposed", [False, True])
def test_pairs_round_the_code_to_bfloat16(transposed: bool) -> None:
    packed = random_packed(128, 256, nested=True)
    x, around = operands(packed, transposed)
    got = KERNEL[transposed](x, packed, scale=around["scale"], pairs=True, chosen=LEFT)
    assert relative(got, TWIN[transposed](x, packed, scale=around["scale"])) <= PAIRS
    rounded = Packed4(
        packed.codes, packed.absmax, packed.table.bfloat16().float(), packed.block, packed.shape, packed.nested
    )
    assert relative(got, TWIN[transposed](x, rounded, scale=around["scale"])) <= EXACT


@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_larger_than_a_tile(transposed: bool) -> None:
    packed = random_packed(128, 512, nested=False, block=256)
    x, _ = operands(packed, transposed)
    assert relative(KERNEL[transposed](x, packed, chosen=LEFT), TWIN[transposed](x, packed)) <= EXACT


def test_strided_operands() -> None:
    packed = random_packed(128, 128, nested=True)
    x, add = torch.randn(20, 256)[:, 64:192], torch.randn(128, 20).T
    scale, out_scale, gate = torch.rand(256)[::2], torch.rand(256)[::2], torch.rand(20, 200)[:, 30:158]
    around = {"scale": scale, "gate": gate, "out_scale": out_scale, "add": add}
    got = device.packed_linear(x, packed, **around, chosen=LEFT)
    assert relative(got, four_bit.packed_linear(x, packed, **around)) <= EXACT


def test_blocks_that_straddle_rows_are_refused() -> None:
    packed = random_packed(64, 96, nested=False)
    with pytest.raises(ValueError, match="no kernel"):
        device.packed_linear(torch.zeros(1, 96), packed, chosen=LEFT)


def test_no_rows() -> None:
    packed = random_packed(128, 64, nested=False)
    assert device.packed_linear(torch.empty(0, 64), packed, chosen=LEFT).shape == (0, 128)


@pytest.mark.parametrize(
    ("shape", "nested", "rows", "columns"),
    [
        ((64, 256), True, range(7, 61), range(4, 250)),
        ((50, 92), True, range(50), range(92)),
        ((50, 92), False, range(3, 9), range(90, 92)),
    ],
)
def test_decoded_rectangle_is_the_twins(shape: tuple[int, int], nested: bool, rows: range, columns: range) -> None:
    packed = random_packed(*shape, nested=nested)
    out = torch.full((len(rows), len(columns) + 3), float("nan"))[:, : len(columns)]
    decode_rectangle(packed, rows, columns, out)
    expected = packed.decode(rows, torch.float32)[:, columns.start : columns.stop]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("function", [device.packed_linear, device.packed_linear_transposed])
def test_kernel_and_twin_take_the_same_arguments(function: Callable[..., Tensor]) -> None:
    twin = inspect.signature(getattr(four_bit, function.__name__)).parameters
    first, packed, around = twin
    assert twin[around].annotation == Unpack[Around]
    assert {first, packed, *Around.__annotations__} <= set(inspect.signature(function).parameters)

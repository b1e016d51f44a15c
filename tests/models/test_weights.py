"""Weights that lie in a matrix in some order of their own: the products of the plain matrix, both ways, in place."""

import pytest
import torch

from detjac_lanczos.models.weights import AlternatingWeight, DenseWeight, PerHeadWeight


@pytest.mark.parametrize("rows", [0, 1, AlternatingWeight.WHOLE_ROWS, AlternatingWeight.WHOLE_ROWS + 1])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("stored_transposed", [False, True])
def test_alternating_rows_multiply_as_the_matrix_of_them(stored_transposed: bool, first: int, rows: int) -> None:
    d, f = 7, 5
    generator = torch.Generator().manual_seed(rows)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    matrix = drawn(d, 2 * f).t() if stored_transposed else drawn(2 * f, d)
    weight, plain = AlternatingWeight(matrix, first), DenseWeight(matrix[first::2].contiguous())
    assert weight.shape == plain.shape and torch.equal(weight.dense(), plain.dense())
    assert weight.dense().data_ptr() == matrix[first].data_ptr()
    x, y = drawn(rows, d), drawn(rows, f)
    around_x = {"scale": drawn(d), "gate": drawn(rows, f), "out_scale": drawn(f), "add": drawn(rows, f)}
    around_y = {"scale": drawn(f), "gate": drawn(rows, d), "out_scale": drawn(d), "add": drawn(rows, d)}
    for options in ({}, around_x):
        torch.testing.assert_close(weight.apply(x, **options), plain.apply(x, **options))
    for options in ({}, around_y):
        torch.testing.assert_close(weight.apply_transposed(y, **options), plain.apply_transposed(y, **options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize("panel", [1, 2 * 3 * 7, PerHeadWeight.PANEL])
def test_rows_of_heads_multiply_as_the_matrix_of_them(
    monkeypatch: pytest.MonkeyPatch, panel: int, rows: int, dtype: torch.dtype
) -> None:
    """Whether a head, two of five or all go through a product at a time."""
    monkeypatch.setattr(PerHeadWeight, "PANEL", panel)
    heads, size, d = 5, 3, 7
    generator = torch.Generator().manual_seed(rows)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    fused = drawn(heads * 3 * size, d)
    parts = fused.unflatten(0, (heads, 3, size))[:, 2]
    weight, plain = PerHeadWeight(parts), DenseWeight(parts.flatten(0, 1))
    assert weight.shape == plain.shape and torch.equal(weight.dense(), plain.dense())
    x, y = drawn(rows, d), drawn(rows, heads * size)
    around = {"scale": drawn(d), "gate": drawn(rows, heads * size), "add": drawn(rows, heads * size)}
    before = [t.clone() for t in (fused, x, y)]
    for found, expected in (
        (weight.apply(x), plain.apply(x)),
        (weight.apply(x, **around), plain.apply(x, **around)),
        (weight.apply_transposed(y), plain.apply_transposed(y)),
        (weight.product_by_head(x).transpose(0, 1).flatten(1), plain.apply(x)),
    ):
        torch.testing.assert_close(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, (fused, x, y), strict=True))


@pytest.mark.parametrize("rows", [1, AlternatingWeight.WHOLE_ROWS + 1])
def test_factors_of_a_higher_precision_leave_rows_in_theirs(rows: int) -> None:
    weight, x, w = AlternatingWeight(torch.randn(10, 7).bfloat16(), 1), torch.randn(rows, 7).bfloat16(), torch.rand(7)
    found = weight.apply(x, scale=w)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, weight.apply((x * w).bfloat16()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_product_of_many_heads_is_rounded_as_one_of_two(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(PerHeadWeight, "PANEL", 1)
    generator = torch.Generator().manual_seed(0)
    weight = PerHeadWeight(torch.randn(256, 3, 7, generator=generator).to(dtype))
    y = torch.randn(9, weight.shape[0], generator=generator).to(dtype)
    exact = y.double() @ weight.dense().double()
    found = weight.apply_transposed(y)
    assert found.dtype is dtype
    assert (found.double() - exact).norm() <= 2 * torch.finfo(dtype).eps / 32**0.5 * exact.norm()

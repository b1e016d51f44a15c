"""Mixing with weights made again, against a softmax written out whole: windows, sinks, caps, groups, sub-ranges."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detjac_kernels import mix, mix_rebuilt, mix_rebuilt_transposed, mix_transposed, rebuilt_mixing


def case(
    dtype: torch.dtype,
    n: int,
    *,
    kv_heads: int = 2,
    group: int = 3,
    window: int | None = None,
    chunk: int | None = None,
    sinks: bool = False,
    softcap: float | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], Tensor]:
    """What the capture would hand over, and the weights (heads, n, n) of a softmax over a mask."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    heads, width = kv_heads * group, 5
    q, k = 2 * draw(heads, n, width), 2 * draw(kv_heads, n, width)
    scores = q @ k.repeat_interleave(group, dim=0).transpose(1, 2) * 0.7
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    at = torch.arange(n)
    visible = at <= at[:, None]
    first = torch.zeros(n, dtype=torch.long)
    if window is not None:
        visible &= at > at[:, None] - window
        first = (at - window + 1).clamp(min=0)
    if chunk is not None:
        visible &= at // chunk == at[:, None] // chunk
        first = at // chunk * chunk
    wide = torch.promote_types(dtype, torch.float32)
    scores = scores.masked_fill(~visible, torch.finfo(dtype).min)
    extra = draw(heads, 1, 1).expand(heads, n, 1) if sinks else scores[..., :0]
    scores = torch.cat([scores, extra], dim=-1)
    weights = torch.softmax(scores, -1, dtype=wide).to(dtype)[..., :n]
    given = {"q": q, "k": k, "lse": scores.to(wide).logsumexp(-1), "first": first, "scaling": 0.7, "softcap": softcap}
    return given, weights


KINDS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 4},
    "chunks": {"chunk": 5},
    "sinks": {"sinks": True},
    "softcap": {"softcap": 3.0},
    "all": {"window": 7, "sinks": True, "softcap": 2.0},
    "one group": {"group": 1, "kv_heads": 4},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("cells", [1, 1 << 20])
def test_both_directions_are_those_of_the_weights(
    kind: str, dtype: torch.dtype, bar: float, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilt_mixing, "TILE_CELLS", cells)
    n = 71
    given, weights = case(dtype, n, **KINDS[kind])
    kv_heads, heads = len(given["k"]), len(weights)
    generator = torch.Generator().manual_seed(1)
    key_scale = torch.rand(n, generator=generator, dtype=dtype) + 0.5
    query_scale = torch.rand(heads, n, generator=generator, dtype=dtype) + 0.5
    query_scale[1] = 0
    scaled = (query_scale[..., None] * weights * key_scale).view(kv_heads, -1, n)
    values = torch.randn(kv_heads, n, 6, generator=generator, dtype=dtype)
    cotangents = torch.randn(kv_heads, heads // kv_heads * n, 6, generator=generator, dtype=dtype)
    keep = values.clone(), cotangents.clone()
    scales = {"key_scale": key_scale, "query_scale": query_scale}
    expected, back = mix(scaled, values), mix_transposed(scaled, cotangents)
    found = mix_rebuilt(**given, values=values, **scales)
    found_back = mix_rebuilt_transposed(**given, cotangents=cotangents, **scales)
    assert (found - expected).norm() <= bar * expected.norm()
    assert (found_back - back).norm() <= bar * back.norm()
    assert torch.equal(values, keep[0])
    assert torch.equal(cotangents, keep[1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_of_queries_and_keys_is_that_part_of_the_weights(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40), "n")
    window = data.draw(st.none() | st.integers(1, 12), "window")
    low = data.draw(st.integers(0, n - 1), "low")
    begin = data.draw(st.integers(low, n - 1), "begin")
    end = data.draw(st.integers(begin, n), "end")
    high = data.draw(st.integers(low, n), "high")
    given, weights = case(torch.float64, n, window=window, seed=n)
    part = {
        **given,
        "q": given["q"][:, begin:end],
        "k": given["k"][:, low:high],
        "lse": given["lse"][:, begin:end],
        "first": given["first"][begin:end] - low,
    }
    dense = weights[:, begin:end, low:high].unflatten(0, (2, 3)).flatten(1, 2)
    eye = torch.eye(high - low, dtype=torch.float64).expand(2, -1, -1)
    assert torch.allclose(mix_rebuilt(**part, values=eye, start=begin - low), dense, rtol=1e-12, atol=1e-14)
    eye = torch.eye(dense.shape[1], dtype=torch.float64).expand(2, -1, -1)
    back = mix_rebuilt_transposed(**part, cotangents=eye, start=begin - low)
    assert torch.allclose(back, dense.transpose(1, 2), rtol=1e-12, atol=1e-14)


def test_weights_of_low_precision_are_rounded_as_the_softmax_rounds_them() -> None:
    given, weights = case(torch.bfloat16, 60, sinks=True)
    found = mix_rebuilt(**given, values=torch.eye(60).expand(2, -1, -1)).view(6, 60, 60)
    assert torch.equal(found == 0, weights == 0)
    # softmax divides where the rebuilt weight subtracts a logarithm: a value on a border may fall to either side of it.
    assert (found != weights).double().mean() <= 1e-3
    assert (found - weights).norm() <= 1e-4 * weights.float().norm()

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import detjac_kernels as twin
from detjac_kernels import mixing, mixing_roads, rebuilt_mixing
from detjac_kernels.choice import ChoiceTable, Road
from detjac_kernels.device import mixing as device
from detjac_kernels.device.mixing import MixingTiles
from tests.kernels.packed import relative

EXACT = 1e-6
BARS = {torch.float32: EXACT, torch.bfloat16: 1e-2}
TILES = MixingTiles(own=32, other=32, columns=64, warps=4, stages=1)


def attention(
    heads: int,
    kv_heads: int,
    queries: int,
    head_dim: int,
    *,
    start: int,
    window: int,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, log-sum-exp with a sink, and first visible keys, of ordinary attention."""
    generator = torch.Generator().manual_seed(0)
    keys = queries + start
    q = torch.randn(heads, queries, head_dim, generator=generator)
    k = torch.randn(kv_heads, keys, head_dim, generator=generator)
    last = torch.arange(queries) + start
    first = last - window + 1
    scores = scaling * q @ k.repeat_interleave(heads // kv_heads, 0).transpose(1, 2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(keys)
    hidden = (at > last[:, None]) | (at < first[:, None])
    sink = torch.randn(heads, queries, 1, generator=generator)
    lse = torch.cat([scores.masked_fill(hidden, -torch.inf), sink], dim=-1).logsumexp(-1)
    return q, k, lse, first.int()


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("queries", "head_dim", "start", "window", "softcap"),
    [(70, 32, 0, 1000, None), (70, 24, 0, 20, 5.0), (40, 16, 37, 25, None)],
    ids=["causal", "window, softcap, odd head", "later queries"],
)
def test_rebuilt(
    dtype: torch.dtype,
    transposed: bool,
    scaled: bool,
    queries: int,
    head_dim: int,
    start: int,
    window: int,
    softcap: float | None,
) -> None:
    heads, kv_heads, columns = 4, 2, 80
    q, k, lse, first = attention(
        heads, kv_heads, queries, head_dim, start=start, window=window, scaling=0.3, softcap=softcap
    )
    options = {"scaling": 0.3, "softcap": softcap, "start": start}
    if scaled:
        key_scale, query_scale = torch.rand(2 * k.shape[1])[::2] + 0.5, torch.rand(heads, 2 * queries)[:, 1::2] + 0.5
        options |= {"key_scale": key_scale, "query_scale": query_scale}
    rows = heads // kv_heads * queries if transposed else k.shape[1]
    q, k, values = q.to(dtype), k.to(dtype), torch.randn(kv_heads, rows, columns).to(dtype)
    name = "mix_rebuilt_transposed" if transposed else "mix_rebuilt"
    got = getattr(device, name)(q, k, lse, first, values, **options, chosen=TILES)
    assert relative(got, getattr(twin, name)(q, k, lse, first, values, **options)) <= BARS[dtype]


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_stored(dtype: torch.dtype, transposed: bool, hidden: bool) -> None:
    kv_heads, group, queries, keys, columns = 2, 3, 40, 52, 70
    first = torch.arange(queries) - 9
    p = torch.rand(kv_heads, group, queries, keys)
    at = torch.arange(keys)
    if hidden:
        p = p * ((at <= torch.arange(queries)[:, None] + 12) & (at >= first[:, None]))
    p = p.flatten(1, 2).to(dtype)
    values = torch.randn(kv_heads, group * queries if transposed else keys, columns).to(dtype)
    options = {"group": group, "first": first, "start": 12} if hidden else {}
    name = "mix_transposed" if transposed else "mix"
    got = getattr(device, name)(p, values, **options, chosen=TILES)
    assert relative(got, getattr(twin, name)(p, values)) <= BARS[dtype]


@pytest.mark.parametrize("faster", ["twin", "kernel"])
def test_the_faster_of_both_is_taken_where_kernels_run(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing_roads, "triton_runs", lambda values: True)
    q, k, lse, first = attention(2, 1, 40, 16, start=0, window=9, scaling=0.3, softcap=None)
    values, timed = torch.randn(1, 40, 16), []

    def timer(road: Road) -> float:
        timed.append(road)
        return float(len(timed) != ["twin", "kernel"].index(faster) + 1)

    table = ChoiceTable(timer)
    monkeypatch.setattr(mixing_roads, "TABLE", table)
    got = mixing_roads.mix_rebuilt(q, k, lse, first, values, scaling=0.3)
    assert list(table.choices().values()) == [faster]
    wanted = rebuilt_mixing.mix_rebuilt(q, k, lse, first, values, scaling=0.3)
    assert relative(got, wanted) <= EXACT
    stored, timed[:] = rebuilt_mixing.mix_rebuilt(q, k, lse, first, torch.eye(40)[None], scaling=0.3), []
    assert relative(mixing_roads.mix(stored, values), wanted) <= EXACT
    assert list(table.choices().values()) == [faster, faster]


@pytest.mark.parametrize(
    ("dtype", "off"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2), (torch.float16, 0.05)], ids=str
)
def test_a_kernel_that_is_off_by_more_than_rounding_is_not_taken(
    dtype: torch.dtype, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing_roads, "triton_runs", lambda values: True)
    monkeypatch.setattr(device, "mix", lambda p, values: (1 + off) * mixing.mix(p, values))
    monkeypatch.setattr(mixing_roads, "TABLE", table := ChoiceTable(lambda road: 1.0))
    p, values = torch.rand(2, 6, 4).to(dtype), torch.randn(2, 4, 8).to(dtype)
    assert torch.equal(mixing_roads.mix(p, values), mixing.mix(p, values))
    (failures,) = table.failures().values()
    assert failures["kernel"].startswith("differs by")


class Keys(list[str]):
    """A table that notes what it is asked for."""

    def run(self, key: str, *_: object, **__: object) -> Tensor:
        self.append(key)
        return torch.zeros(1)


def test_what_a_choice_depends_on_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes up to the next power of two share a choice."""
    monkeypatch.setattr(mixing_roads, "triton_runs", lambda values: True)
    monkeypatch.setattr(mixing_roads, "TABLE", keys := Keys())
    half = torch.bfloat16
    rebuilt = {"heads": 4, "kv_heads": 2, "queries": 40, "keys": 40, "head_dim": 16, "columns": 16, "softcap": None}
    others = [{"heads": 8}, {"kv_heads": 1}, {"queries": 20}, {"keys": 80}, {"head_dim": 32}, {"columns": 40}]
    for change in [{}, *others, {"softcap": 5.0}, {"dtype": half}]:
        case = {"dtype": torch.float32} | rebuilt | change
        q = torch.zeros(case["heads"], case["queries"], case["head_dim"])
        k = torch.zeros(case["kv_heads"], case["keys"], case["head_dim"])
        lse, first = torch.zeros(case["heads"], case["queries"]), torch.zeros(case["queries"]).int()
        options = {"scaling": 0.3, "softcap": case["softcap"]}
        values = torch.zeros(case["kv_heads"], case["keys"], case["columns"], dtype=case["dtype"])
        mixing_roads.mix_rebuilt(q, k, lse, first, values, **options)
        mixing_roads.mix_rebuilt_transposed(q, k, lse, first, values, **options)
    for groups, rows, columns, width, dtype in (
        (2, 40, 40, 16, torch.float32),
        (1, 40, 40, 16, torch.float32),
        (2, 80, 40, 16, torch.float32),
        (2, 40, 80, 16, torch.float32),
        (2, 40, 40, 40, torch.float32),
        (2, 40, 40, 16, half),
    ):
        p = torch.zeros(groups, rows, columns, dtype=dtype)
        mixing_roads.mix(p, torch.zeros(groups, columns, width, dtype=dtype))
        mixing_roads.mix_transposed(p, torch.zeros(groups, rows, width, dtype=dtype))
    assert len(keys) == len(set(keys)) == 2 * 9 + 2 * 6
    mixing_roads.mix(torch.zeros(2, 64, 33), torch.zeros(2, 33, 9))
    mixing_roads.mix(torch.zeros(2, 40, 40), torch.zeros(2, 40, 16))
    assert keys[-1] == keys[-2]
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    mixing_roads.mix(torch.zeros(2, 40, 40), torch.zeros(2, 40, 16))
    assert keys[-1] != keys[-2]


def test_precisions_without_a_kernel_are_the_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing_roads, "triton_runs", lambda values: True)
    monkeypatch.setattr(mixing_roads, "TABLE", table := ChoiceTable(lambda road: 1.0))
    p, values = torch.rand(2, 6, 4).double(), torch.randn(2, 4, 8).double()
    assert torch.equal(mixing_roads.mix(p, values), mixing.mix(p, values))
    q, k, lse, first = attention(2, 1, 40, 16, start=0, window=9, scaling=0.3, softcap=None)
    for other in (lse, lse.double()):
        mixing_roads.mix_rebuilt(q.double(), k.double(), other, first, torch.randn(1, 40, 16).double(), scaling=0.3)
    assert not table.choices()


def test_keys_that_nothing_sees_get_zeros() -> None:
    q, k, lse, first = attention(2, 1, 33, 16, start=40, window=8, scaling=0.3, softcap=None)
    got = device.mix_rebuilt_transposed(q, k, lse, first, torch.randn(1, 66, 64), scaling=0.3, chosen=TILES)
    wanted = torch.zeros(1, 73, 64)
    assert torch.equal(got[:, 33:], wanted[:, 33:])  # start = 0: the queries end before these keys

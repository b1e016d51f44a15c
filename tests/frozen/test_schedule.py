"""Plans: exact against every possibility, sized as what is recorded, and one line where nothing fits."""

import json
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detjac_lanczos.budget import format_bytes, read_memory
from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.frozen.sizes import BlockShape, GateShape, NetworkShape
from detjac_lanczos.frozen.ways import KINDS, WAYS, Rates
from detjac_lanczos.frozen.ways import seconds_of as seconds
from detjac_lanczos.operators import detach
from tests import tiny_models
from tests.every_block import every_block, unchecked
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = DENSE | MOE
LENGTHS = (tiny_models.LENGTH, 5)
RATES = Rates(flops=1e9, weights=1e7, bytes=1e8, overlaps=False)


def network_shape(*blocks: BlockShape) -> NetworkShape:
    return NetworkShape(blocks, BlockShape(numbers=1), 24, 24, 24, 40, 4)


SMALL = BlockShape(heads=4, kv_heads=2, head_dim=6, gates=(GateShape(24, 40, 1, 1),), numbers=2)
LARGE = BlockShape(heads=8, kv_heads=2, head_dim=16, gates=(GateShape(24, 96, 2, 3),), numbers=2)


@pytest.mark.parametrize(
    ("way", "freeze", "dtype"),
    [("keep", "gate", torch.bfloat16), ("offload", "up", torch.float64), ("rebuild", "half", torch.float32)],
    ids=WAYS,
)
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_counts_the_bytes_that_are_recorded(name: str, way: Any, freeze: Any, dtype: torch.dtype) -> None:
    with every_block(way), unchecked():
        ids = tiny_models.prompt_ids(*LENGTHS)
        network = detach((MODELS[name](dtype), None), input_ids=ids, freeze=freeze, memory="1GB")
    plan = network.plan
    assert plan.mixing == plan.gates == (way,) * 3
    stored = {key: value for key, value in network.coefficients.items() if value.ndim}
    kinds = {kind: sum(v.nbytes for k, v in stored.items() if kind_of(k) == kind) for kind in (*KINDS, None)}
    assert {kind: plan.bytes_of(kind, way) for kind in KINDS} == {kind: kinds[kind] for kind in KINDS}
    assert plan.shape.rest(LENGTHS) == kinds[None]
    streams = network.streams
    kept = (streams.embeddings, streams.output, streams.logits, streams.model_output, *streams.residual)
    assert plan.streams == sum(value.nbytes for value in kept)


def kind_of(name: str) -> Any:
    if ".mixing." in name:
        return "mixing"
    gate = (".activation", ".factor", ".ratio", ".input", ".scale")
    return "gates" if name.endswith(gate) and ".experts." not in name else None


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.sampled_from([SMALL, LARGE]), min_size=1, max_size=3),
    share=st.floats(0, 1.1),
    rates=st.sampled_from([RATES, replace(RATES, bytes=1e10), replace(RATES, overlaps=True, weights=1e6)]),
)
def test_the_plan_is_the_cheapest_of_all_that_fit(blocks: list[BlockShape], share: float, rates: Rates) -> None:
    shape = network_shape(*blocks)
    lengths = (9, 4)
    fixed = shape.streams(lengths) + shape.rest(lengths)
    every = [
        Plan(ways[: len(blocks)], ways[len(blocks) :], shape, lengths) for ways in product(WAYS, repeat=2 * len(blocks))
    ]
    memory = fixed + int(share * (max(plan.resident for plan in every) - fixed))

    def cost(plan: Plan) -> float:
        ways = ((i, block, kind) for i, block in enumerate(blocks) for kind in KINDS)
        return sum(seconds(shape, block, kind, plan.way(kind, i), lengths, rates) for i, block, kind in ways)

    found = make_plan(shape, lengths, memory, rates)
    assert found.resident <= memory
    assert cost(found) == pytest.approx(found.seconds)
    assert found.seconds == pytest.approx(min(cost(plan) for plan in every if plan.resident <= memory))


def test_the_middle_leaves_first_and_the_ends_stay() -> None:
    shape = network_shape(*(SMALL for _ in range(12)))
    lengths = (64,)
    whole = make_plan(shape, lengths, None)
    assert set(whole.mixing) == set(whole.gates) == {"keep"}
    saved = shape.mixing(SMALL, lengths, rebuilt=False) - shape.mixing(SMALL, lengths, rebuilt=True)
    found = make_plan(shape, lengths, whole.resident - 4 * saved, replace(RATES, bytes=1e4))
    assert found.mixing == ("keep",) * 4 + ("rebuild",) * 4 + ("keep",) * 4
    assert set(found.gates) == {"keep"}
    record = json.loads(json.dumps(found.record))
    for ahead in (True, False):
        assert Plan.from_record(record, shape, lengths, ahead=ahead) == replace(found, ahead=ahead)
    assert "rebuild 4-7" in str(found)


@pytest.mark.parametrize("ahead", [False, True])
def test_two_neighbouring_blocks_of_offloaded_factors_are_on_a_device_at_once(ahead: bool) -> None:
    shape, lengths = network_shape(SMALL, LARGE, SMALL, LARGE, SMALL), (9, 4)
    rates = replace(RATES, overlaps=ahead)
    plan = replace(
        make_plan(shape, lengths, None, rates),
        mixing=("keep", "offload", "offload", "keep", "offload"),
        gates=("offload", "rebuild", "offload", "offload", "keep"),
    )
    P, g = (
        {block: size(block, lengths, rebuilt=False) for block in (SMALL, LARGE)} for size in (shape.mixing, shape.gates)
    )
    of_blocks = [g[SMALL], P[LARGE], P[SMALL] + g[SMALL], g[LARGE], P[SMALL]]
    assert plan.offloaded == sum(of_blocks)
    assert plan.staged == (max(map(sum, pairwise(of_blocks))) if ahead else 0)
    assert plan.peak(4) - replace(plan, ahead=False).peak(4) == plan.staged
    alone = replace(plan, shape=network_shape(LARGE), mixing=("offload",), gates=("keep",))
    assert alone.staged == (P[LARGE] if ahead else 0)
    assert Plan.from_record(json.loads(json.dumps(plan.record)), shape, lengths, ahead=plan.ahead) == plan


def test_a_budget_below_the_smallest_plan_says_what_would_do() -> None:
    loaded = tiny_models.loaded(tiny_models.llama())
    with pytest.raises(InputError, match=r"the smallest plan takes .*; give that much, or fewer tokens") as error:
        detach(loaded, input_ids=[1, 2, 3], memory=100)
    assert "\n" not in str(error.value)
    enough = str(error.value).split("takes ")[1].split(";")[0]
    assert detach(loaded, input_ids=[1, 2, 3], memory=enough).plan.resident <= (read_memory(enough) or 0)


def test_budgets_are_read_as_people_write_them() -> None:
    read = {
        "2GiB": 2 << 30,
        "500 MB": 500 * 10**6,
        "1.5g": 15 * 10**8,
        "4096": 4096,
        "1e9": 10**9,
        " 3 kib ": 3072,
        "7 bytes": 7,
    }
    assert {text: read_memory(text) for text in read} == read
    assert read_memory(7) == 7
    assert read_memory(None) is None
    for bad in ("", "much", "-1", 0, -5, True, 1.5, "2 apples"):
        with pytest.raises(InputError, match="memory must be"):
            read_memory(bad)  # type: ignore[arg-type]
    for count in (1, 1023, 1025, 10**6, 123456789, 2**31):
        assert (read_memory(format_bytes(count, up=True)) or 0) >= count

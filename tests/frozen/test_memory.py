"""Networks that keep less: the same numbers, no more memory than planned, and everything else as before."""

import tempfile
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import LlamaConfig, LlamaForCausalLM

from bench.allocations import with_peak
from detjac_kernels import roads
from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen import attention, mapped, peak
from detjac_lanczos.frozen.attention import first_visible
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.operators import DetachedNetwork, detach, head, layer, mlp
from detjac_lanczos.operators import attention as attention_of
from tests import tiny_models
from tests.every_block import every_block
from tests.tiny_models.dense import gemma, gemma2, gpt2, gpt_neox
from tests.tiny_models.moe import deepseek_v3, gpt_oss
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(40, 7)
GPT2 = {"n_embd": 128, "n_inner": 512, "n_head": 8, "n_layer": 4, "n_positions": 512, "vocab_size": 5000}
MLA = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "v_head_dim": 128,
    "qk_nope_head_dim": 32,
    "kv_lora_rank": 64,
    "num_hidden_layers": 2,
}
NEOX = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 8, "num_hidden_layers": 4}


def network(make: str, way: Any, dtype: torch.dtype = torch.float64, **options: Any) -> DetachedNetwork:
    model = getattr(tiny_models, make)(dtype, bias=True)
    with every_block(way):
        return detach(tiny_models.loaded(model), input_ids=IDS, memory="1GB", **options)


def products(net: DetachedNetwork) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = net.jacobians([(0, 3), (0, 30), (0, 39), (1, 2)])
    blocks = [(i, torch.randn(24, 3, generator=generator, dtype=torch.float64).to(net.dtype)) for i in range(4)]
    joint = net.jacobian("joint", source=layer(1), target=mlp(2), position=20)
    u = torch.randn(24, 2, generator=generator, dtype=torch.float64).to(net.dtype)
    return [*batch.matmat(blocks), *batch.rmatmat(blocks), joint.rmatmat(u), joint.offset]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_offloaded_coefficients_give_the_same_bits(make: str, dtype: torch.dtype) -> None:
    kept, away = (network(make, way, dtype, freeze="half") for way in ("keep", "offload"))
    assert away.plan.offloaded == kept.plan.coefficients - kept.plan.shape.rest(kept.lengths)
    in_files = {name for name, value in away.coefficients.items() if mapped.is_mapped(value)}
    assert in_files == {name for name in kept.coefficients if ".mixing." in name or ".mlp.gate" in name}
    for found, expected in zip(products(away), products(kept), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("cells", [1, 1 << 20])
def test_coefficients_made_again_under_windows_give_the_same_map(
    dtype: torch.dtype, bar: float, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles of 32 queries, too."""
    kept = network("gemma", "keep", dtype, freeze="half")
    monkeypatch.setattr(attention, "TILE_CELLS", cells)
    monkeypatch.setattr("detjac_kernels.rebuilt_mixing.TILE_CELLS", cells)
    again = network("gemma", "rebuild", dtype, freeze="half")
    for found, expected in zip(products(again), products(kept), strict=True):
        assert (found - expected).double().norm() <= bar * expected.double().norm()


@pytest.mark.parametrize("way", ["keep", "rebuild"])
def test_rows_lie_in_the_order_of_their_operators(way: Any) -> None:
    """Also where each position has one row and a later prompt comes first."""
    net = network("llama", way, freeze="half")
    batch = net.jacobians([(1, 4), (0, 38)])
    X = [(i, torch.randn(24, 1, generator=torch.Generator().manual_seed(i), dtype=torch.float64)) for i in range(2)]
    for found, (i, x) in zip(batch.matmat(X), X, strict=True):
        alone = batch.operators[i].matmat(x)
        assert (found - alone).norm() <= 1e-13 * alone.norm()


@pytest.mark.filterwarnings("ignore:forward hooks on")
def test_hooks_on_an_activation_have_no_part_in_gates_made_again() -> None:
    model = tiny_models.llama()
    expected = detach((model, None), input_ids=IDS[1]).jacobian("joint").dense()
    model.model.layers[1].mlp.act_fn.register_forward_hook(lambda module, args, out: 2 * out)
    with every_block("rebuild"):
        found = detach((model, None), input_ids=IDS[1], memory="1GB").jacobian("joint").dense()
    assert (found - expected).norm() <= 1e-13 * expected.norm()


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made meanwhile has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        sizes = [value.untyped_storage().nbytes() // value.itemsize for value in tree_flatten(result)[0]
                 if isinstance(value, Tensor)]  # fmt: skip
        self.numbers = max(self.numbers, *sizes, 0)
        return result


@pytest.mark.parametrize("way", ["keep", "rebuild"])
def test_the_capture_makes_no_weights_of_all_heads_unless_they_are_kept(
    way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "TILE_CELLS", 1)
    monkeypatch.setattr("detjac_kernels.rebuilt_mixing.TILE_CELLS", 1)
    loaded = tiny_models.loaded(tiny_models.llama(torch.float32, attn_implementation="sdpa"))
    ids = tiny_models.prompt_ids(64)
    detach(loaded, input_ids=ids)
    heads = loaded.model.config.num_attention_heads
    with every_block(way, "keep"), Largest() as largest:
        detach(loaded, input_ids=ids, memory="1GB")
    whole = heads * 64 * 64
    assert largest.numbers >= whole if way == "keep" else largest.numbers < whole


@pytest.mark.parametrize("freeze", ["gate", "half"])
@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_parts_are_switched_off_whatever_the_plan(make: str, freeze: Any) -> None:
    kept, again = (network(make, way, freeze=freeze) for way in ("keep", "rebuild"))
    for drop in ([head(1, 2), head(2, 0)], [attention_of(1)], [mlp(2), head(0, 3)]):
        one, other = again.replace(drop=drop), kept.replace(drop=drop)
        for found, expected in zip(products(one), products(other), strict=True):
            assert (found - expected).norm() <= 1e-13 * (expected.norm() or 1.0)
    before = products(again)
    name = "blocks.1.self_attn.mixing.0.query_scale"
    doubled = again.replace({name: 2 * again.coefficients[name]})
    twice = kept.replace({name[:-12]: 2 * kept.coefficients[name[:-12]]})
    for found, expected in zip(products(doubled), products(twice), strict=True):
        assert (found - expected).norm() <= 1e-13 * expected.norm()
    assert all(torch.equal(a, b) for a, b in zip(products(again), before, strict=True))
    with pytest.raises(InputError, match="no such coefficient"):
        again.replace({name[:-12]: kept.coefficients[name[:-12]]})


def test_the_first_visible_key_is_read_from_masks_that_are_windows_alone() -> None:
    n = 50
    at = torch.arange(n)
    least = torch.finfo(torch.float32).min
    for first in (torch.zeros(n, dtype=torch.long), (at - 6).clamp(min=0), at // 8 * 8):
        visible = (at >= first[:, None]) & (at <= at[:, None])
        mask = torch.zeros(1, 1, n, n).masked_fill(~visible, least)
        found = first_visible(mask, n)
        assert found is not None and torch.equal(found, first)
        for i, j, value in ((9, 9, least), (20, 15, -1.0), (20, 30, 0.0)):
            other = mask.clone()
            other[0, 0, i, j] = value
            assert first_visible(other, n) is None
        assert first_visible(mask.expand(1, 2, n, n), n) is None
    assert first_visible(None, n) is None


def test_weights_under_another_mask_are_kept_and_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = network("llama", "keep")
    monkeypatch.setattr("detjac_lanczos.frozen.words.attention.first_visible", lambda mask, n: None)
    with pytest.warns(UserWarning, match=r"blocks\.0\.self_attn\.mixing\.0 is kept"):
        again = network("llama", "rebuild")
    assert "blocks.1.self_attn.mixing.0" in again.coefficients
    for found, expected in zip(products(again), products(kept), strict=True):
        assert (found - expected).norm() <= 1e-13 * expected.norm()


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"no room for .* \(No space left on device\); set TMPDIR"):
        network("llama", "offload")


def test_a_disk_so_full_that_no_temporary_folder_is_usable_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    with pytest.raises(InputError, match=r"^no room for .* in any folder \(No usable temporary .*\); set TMPDIR .*$"):
        mapped.mapped_zeros((3, 4), torch.float64)


def test_files_are_given_their_size_where_the_system_reserves_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mapped.os, "posix_fallocate", raising=False)
    tensor = mapped.mapped_zeros((3, 4), torch.float64)
    assert mapped.is_mapped(tensor) and not tensor.any()
    tensor += 1
    assert float(tensor.sum()) == 12


def test_an_undeclared_model_takes_no_budget() -> None:
    model = next(iter(UNDECLARED.values()))(torch.float32)
    with pytest.raises(InputError, match="memory is planned for declared families only"):
        detach((model, None), input_ids=[1, 2, 3], memory="1GiB")
    with pytest.raises(InputError, match="for declared families only"):
        _ = detach((model, None), input_ids=[1, 2, 3]).plan


@pytest.mark.parametrize(("blocks", "tokens", "share"), [(30, 64, 0.0), (8, 64, 1.0), (8, 130, 0.3)])
def test_the_peak_is_predicted_within_a_tenth_and_never_below(
    smollm2: LoadedModel, blocks: int, tokens: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all blocks of SmolLM2, and on a few of its size."""
    config = LlamaConfig(**smollm2.model.config.to_dict() | {"num_hidden_layers": blocks})
    loaded = smollm2 if blocks == 30 else tiny_models.loaded(LlamaForCausalLM(config).eval())
    ids = torch.randint(0, 40000, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    shape = family_of(loaded.model).shape(loaded.model, "gate")
    least = shape.streams([tokens]) + shape.rest([tokens])
    whole = make_plan(shape, [tokens], None).resident
    # as in a process that has not met these shapes and this model before
    monkeypatch.setattr(roads, "_table", {})
    monkeypatch.setattr("detjac_lanczos.operators.self_check._passed", {})
    net, captured, _ = with_peak(lambda: detach(loaded, input_ids=ids, memory=int(least + share * (whole - least))))
    J = net.jacobian("joint")
    X, Y = torch.randn(J.shape[1], 4), torch.randn(J.shape[0], 4)
    sweeps = (with_peak(product)[1] for product in (lambda: J.matmat(X), lambda: J.rmatmat(Y)))
    measured = max(captured, *(net.plan.resident + peak for peak in sweeps))
    assert measured <= net.plan.peak(4) <= 1.1 * measured


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("make", "sizes"), [(gpt2, GPT2), (gpt_neox, NEOX)])
def test_centered_rows_and_biases_are_counted(
    make: Any, sizes: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LayerNorm makes centered rows beside the stream, and the self-check's affine pass sums of the wide middle."""
    loaded, ids = tiny_models.loaded(make(dtype, **sizes)), tiny_models.prompt_ids(64)[0]
    monkeypatch.setattr(roads, "_table", {})
    monkeypatch.setattr("detjac_lanczos.operators.self_check._passed", {})
    net, captured, _ = with_peak(lambda: detach(loaded, input_ids=ids))
    room = (870 << 10) if dtype is torch.bfloat16 else 0  # what oneDNN may take, and does not for products so small
    assert captured <= net.plan.peak(1)
    assert room or net.plan.peak(1) <= 1.25 * captured
    J = net.jacobian("joint")
    X = torch.randn(J.shape[1], 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr(roads, "_table", {})
    _, swept, _ = with_peak(lambda: J.matmat(X))
    assert net.plan.resident + swept <= net.plan.peak(32) <= 1.1 * (net.plan.resident + swept) + room


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_indices_of_many_heads_are_counted_in_lockstep(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both mixings have theirs: the one between all positions, and the last one, that prunes."""
    made = gpt2(dtype, n_embd=128, n_inner=128, n_head=16, n_layer=3, n_positions=512)
    net = detach(tiny_models.loaded(made), input_ids=tiny_models.prompt_ids(48)[0])
    batch, rows = net.jacobians(), [torch.randn(128, 3).to(dtype) for _ in range(48)]

    def both_ways() -> None:
        batch.matmat(list(enumerate(rows)))
        roads._table.clear()
        batch.rmatmat(list(enumerate(rows)))

    monkeypatch.setattr(roads, "_table", {})
    _, held, _ = with_peak(both_ways)
    assert held <= peak.sweep_bytes(net.plan.shape, range(48, 0, -1), 3, rebuilt=(False, False), lockstep=True)


@pytest.mark.parametrize("width", [8, 32])
def test_values_wider_than_queries_are_counted(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_models.loaded(deepseek_v3(torch.float32, **MLA))
    net = detach(loaded, input_ids=tiny_models.prompt_ids(64)[0])
    J = net.jacobian("joint")
    X = torch.randn(J.shape[1], width, generator=torch.Generator().manual_seed(0))
    for product in (lambda: J.matmat(X), lambda: J.rmatmat(J.matmat(X))):
        monkeypatch.setattr(roads, "_table", {})
        _, swept, _ = with_peak(product)
        assert net.plan.resident + swept <= net.plan.peak(width)


@pytest.mark.parametrize(
    ("make", "tokens", "dtype"),
    [
        pytest.param(gemma, 1500, torch.float32, id="two masks"),
        pytest.param(deepseek_v3, 1000, torch.float32, id="sdpa with values of their own width"),
        pytest.param(deepseek_v3, 1000, torch.bfloat16, id="the same in bfloat16"),
        pytest.param(gemma2, 1000, torch.float32, id="eager"),
        pytest.param(gemma2, 1000, torch.bfloat16, id="eager in bfloat16"),
        pytest.param(gemma2, 800, torch.float64, id="eager in float64"),
        pytest.param(gpt_oss, 1000, torch.float32, id="eager with sinks"),
    ],
)
def test_masks_and_whole_scores_of_the_models_own_attention_are_counted(
    make: Any, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(dtype)
    model.config.max_position_embeddings = tokens
    loaded, ids = tiny_models.loaded(model), tiny_models.prompt_ids(tokens)
    detach(loaded, input_ids=[[1, 2]])
    monkeypatch.setattr("detjac_lanczos.operators.self_check._passed", {})
    with every_block("offload"):
        net, captured, _ = with_peak(lambda: detach(loaded, input_ids=ids, memory="1GB"))
    assert captured <= net.plan.peak(1) <= 1.25 * captured

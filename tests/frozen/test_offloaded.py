"""Models whose weights accelerate offloads: the same numbers, each weight read once per sweep, two blocks at a time."""

import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from detjac_lanczos.errors import InputError, ModelError, UnsupportedModelError
from detjac_lanczos.frozen.observed import observed_copy
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.models.held import Held
from detjac_lanczos.models.offloaded import OffloadedModule, offloaded
from detjac_lanczos.models.side_stream import Pace
from detjac_lanczos.models.streaming import in_turn
from detjac_lanczos.operators import DetachedNetwork, attention, detach, layer, mlp, probe
from detjac_lanczos.reading import decode_left, decode_right
from detjac_lanczos.runs import analyze
from tests import tiny_models
from tests.every_block import every_block
from tests.interrupts import interrupts
from tests.offloading import Counts, in_host_memory, on_disk
from tests.threads import at_once
from tests.tiny_models.moe import MOE, mixtral
from tests.tiny_models.packed import quantised

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(9, 4)
MODELS = tiny_models.DENSE | MOE
NAMES = ["Llama biased", "Gemma 3 multimodal", "Phi-3", "GPT-2", "GPT-NeoX", "OPT post-norm", "gpt-oss", "DeepSeek-V3"]


def results(network: DetachedNetwork) -> list[Tensor]:
    rows = torch.randn(3, network.output_size, generator=torch.Generator().manual_seed(0)).double()
    found = [network.streams.output, network.streams.logits, network.streams.model_output, *network.streams.residual]
    for target in ("output", "residual", "logits", probe(rows), layer(1), attention(2), mlp(0)):
        J = network.jacobian("joint", target=target)
        found += [J.dense(), J.T.dense(), J.y, J.offset]
    return [*found, network.jacobian((1, 2), source=layer(1)).dense()]


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_the_same_bits_from_disk(name: str, tmp_path: Path) -> None:
    resident, model = (load_model(MODELS[name](torch.float32)) for _ in range(2))
    streamed = load_model(on_disk(model.model, tmp_path))
    assert streamed.fingerprint == resident.fingerprint
    networks = [detach(loaded, input_ids=IDS) for loaded in (resident, streamed)]
    assert networks[1].device == torch.device("cpu")
    for expected, found in zip(*map(results, networks), strict=True):
        assert torch.equal(expected, found)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


def block_bytes(model: Any, index: int) -> int:
    """Bytes of the matrices of a block that its sweeps use."""
    block = model.model.layers[index]
    used = (block.self_attn.v_proj, block.self_attn.o_proj, block.mlp.up_proj, block.mlp.down_proj)
    return sum(module.weight.nbytes for module in used)


@pytest.mark.parametrize("target", ["output", "logits"])
def test_a_sweep_reads_every_weight_once_and_holds_two_blocks_at_most(target: str, tmp_path: Path) -> None:
    model = on_disk(tiny_models.llama(torch.float32, hidden_size=64, num_hidden_layers=5), tmp_path)
    counts = Counts(model)
    J = detach(load_model(model), input_ids=tiny_models.prompt_ids(40)[0]).jacobian("joint", target=target)
    norms = counts.live
    assert norms == sum(p.nbytes for name, p in model.named_parameters() if "norm" in name)
    of_block = ["self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    once = [f"model.layers.{i}.{name}.weight" for i in range(5) for name in of_block]
    once += ["lm_head.weight"] if target == "logits" else []
    head = model.lm_head.weight.nbytes if target == "logits" else 0
    for product, width, order in ((J.matmat, J.shape[1], once), (J.rmatmat, J.shape[0], once[::-1])):
        counts.reset()
        product(torch.eye(width, 60))  # 2,400 rows: the chains run over them in three parts
        assert sorted(counts.names) == sorted(once)
        assert [name.split(".")[-4:-3] for name in counts.names] == [name.split(".")[-4:-3] for name in order]
        assert counts.most <= norms + max(2 * block_bytes(model, 0), block_bytes(model, 0) + head)
        assert counts.live == norms
        assert counts.threads != {threading.current_thread().name}


def test_an_ordinary_jacobian_holds_one_module_at_a_time_either_way(tmp_path: Path) -> None:
    def make() -> Any:
        return tiny_models.llama(torch.float32, hidden_size=64, num_hidden_layers=5)

    model = on_disk(make(), tmp_path)
    counts = Counts(model)
    resident, J = (
        detach(load_model(m), input_ids=tiny_models.prompt_ids(9)[0]).jacobian("joint", frozen=False)
        for m in (make(), model)
    )
    norms = counts.live
    largest = max(module.weight.nbytes for module in model.model.layers.modules() if isinstance(module, nn.Linear))
    for product, expected, width in ((J.matmat, resident.matmat, J.shape[1]), (J.rmatmat, resident.rmatmat, 64)):
        counts.reset()
        assert torch.equal(product(torch.eye(width, 8)), expected(torch.eye(width, 8)))
        assert counts.most <= norms + largest
        assert counts.live == norms


class Paper:
    """An offloaded module that notes when it is read, held and left."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.begun, self.held_now = threading.Event(), False

    def read(self) -> dict[str, Tensor]:
        self.begun.set()
        return {}

    def held(self, values: dict[str, Tensor] | None) -> "Paper":
        assert values == {}
        return self

    def __enter__(self) -> None:
        self.held_now = True

    def __exit__(self, *_: object) -> None:
        self.held_now = False


class Slow(Held[None, nn.Module]):
    """Values that take a while to read."""

    def _read(self) -> None:
        time.sleep(0.05)

    def _placed(self, values: None) -> nn.Module:
        return nn.Identity()


def test_threads_that_hold_at_once_share_what_is_placed() -> None:
    source, together = Slow(torch.device("cpu")), threading.Barrier(2, timeout=10)

    def hold() -> nn.Module:
        with source.held() as here:
            together.wait()
            return here

    one, other = at_once([hold, hold])
    assert one is other
    del one, other
    assert source._here is None


def test_nothing_is_held_after_an_interrupt() -> None:
    source = Slow(torch.device("cpu"))

    def hold() -> None:
        with source.held() as here:
            len(list(here.modules()))

    for place in interrupts(hold, "models/held.py", "contextlib.py"):
        assert source._here is None, place


def test_the_next_group_is_read_while_one_is_at_work() -> None:
    groups: Any = [[Paper(), Paper()], [], [Paper()], [Paper()]]
    for turn in in_turn(groups):
        held = [index for index, group in enumerate(groups) if group and all(paper.held_now for paper in group)]
        assert held == ([turn] if groups[turn] else [])
        for ahead in groups[turn + 1 : turn + 2]:
            assert all(paper.begun.wait(10) for paper in ahead)
        assert not any(paper.begun.is_set() for group in groups[turn + 2 :] for paper in group)


def test_the_host_is_at_most_one_turn_ahead_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the values of turn i are placed, turn i − 2 has ended on the device; i − 1 may be at work."""
    marked: list[int] = []
    ended: list[int] = []

    class Stream:
        def record_event(self) -> Any:
            marked.append(len(marked))
            return SimpleNamespace(synchronize=partial(ended.append, marked[-1]))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    pace = Pace([torch.device("cuda", 0), torch.device("cuda", 0), torch.device("cpu")])
    for turn in range(5):
        pace.before()
        assert ended == list(range(turn - 1))
        pace.after()
    assert marked == list(range(5))


def test_nothing_is_held_after_an_error_in_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_disk(tiny_models.llama(torch.float32), tmp_path)
    counts = Counts(model)
    network = detach(load_model(model), input_ids=IDS[0])
    J, norms = network.jacobian(0), counts.live
    monkeypatch.setattr(network.stages[4].branches[0].chain[1].weight, "apply", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        J.matmat(torch.eye(24))
    assert counts.live == norms
    source = offloaded(model.model.layers[1].mlp.up_proj)
    assert source is not None
    assert source._here is None


def test_the_copy_shares_the_weight_maps() -> None:
    model = in_host_memory(tiny_models.gemma(torch.float32, hidden_size=64, intermediate_size=160))
    before = {id(module._hf_hook.weights_map) for module in model.modules() if module._parameters}
    copied = observed_copy(model)
    assert {id(module._hf_hook.weights_map) for module in copied.modules() if module._parameters} == before
    assert copied.lm_head._hf_hook is not model.lm_head._hf_hook


def test_host_memory_is_used_in_place() -> None:
    model = in_host_memory(tiny_models.llama(torch.float32))
    source = offloaded(model.lm_head)
    assert source is not None
    with source.held() as here, source.held() as again:
        assert here is again
        assert here.weight.data_ptr() == model.lm_head._hf_hook.weights_map["weight"].data_ptr()
    network = detach(load_model(model), input_ids=IDS)
    expected = detach(load_model(tiny_models.llama(torch.float32)), input_ids=IDS)
    for found, wanted in zip(results(network), results(expected), strict=True):
        assert torch.equal(found, wanted)


def test_values_kept_in_another_precision_are_read_in_the_modules() -> None:
    model = in_host_memory(tiny_models.llama(torch.float32))
    source = offloaded(model.lm_head)
    assert source is not None
    kept = source._map["weight"]
    source._map = {"weight": kept.double()}
    with source.held() as here:
        for found in (here.weight, source.tensor("weight")):
            assert found.dtype is torch.float32
            assert torch.equal(found, kept)


def test_the_whole_road_with_decoding_and_the_ordinary_jacobian(tmp_path: Path) -> None:
    resident = load_model(tiny_models.gemma(torch.float32))
    streamed = load_model(on_disk(tiny_models.gemma(torch.float32), tmp_path))
    runs = [analyze(loaded, input_ids=IDS[0], k=3) for loaded in (resident, streamed)]
    for a, b in zip(runs[0].tokens, runs[1].tokens, strict=True):
        assert a.status == b.status
        assert torch.equal(a.U, b.U)
        assert [v.decoded for v in (*a.left, *a.right)] == [v.decoded for v in (*b.left, *b.right)]
    networks = [detach(loaded, input_ids=IDS[0]) for loaded in (resident, streamed)]
    a, b = (n.jacobian("joint", frozen=False).dense() for n in networks)
    assert torch.equal(a, b)
    U = torch.eye(24)[:, :2]
    left = [decode_left(n, U, n.jacobian(0, target="residual").y, "residual") for n in networks]
    assert left[0][0] == left[1][0]
    assert decode_right(networks[0], U * left[0][1]) == decode_right(networks[1], U * left[1][1])


def test_a_saved_network_joins_the_same_weights_wherever_they_are(tmp_path: Path) -> None:
    resident = load_model(tiny_models.llama(torch.float32))
    streamed = load_model(on_disk(tiny_models.llama(torch.float32), tmp_path / "weights"))
    path = detach(streamed, input_ids=IDS[0]).save(tmp_path)
    for loaded in (resident, streamed):
        again = DetachedNetwork.load(path, loaded)
        assert torch.equal(again.jacobian(2).dense(), detach(resident, input_ids=IDS[0]).jacobian(2).dense())


def test_a_table_that_is_tied_in_name_alone_counts_in_the_fingerprint() -> None:
    tied, apart = (in_host_memory(tiny_models.llama(torch.float32, tie_word_embeddings=True)) for _ in range(2))
    hook = apart.model.embed_tokens._hf_hook
    hook.weights_map = {"weight": 2 * hook.weights_map["weight"]}
    assert load_model(tied).fingerprint != load_model(apart).fingerprint


def test_experts_that_are_offloaded_are_differentiated_one_by_one() -> None:
    """Each expert's matrices are a part of one tensor, that begins elsewhere in it."""
    found, expected = (
        detach(load_model(put(mixtral())), input_ids=IDS[0]).jacobian("joint", frozen=False)
        for put in (in_host_memory, lambda model: model)
    )
    u = torch.eye(24, 3, dtype=torch.float64)
    torch.testing.assert_close(found.rmatmat(u), expected.rmatmat(u), rtol=1e-12, atol=1e-12)


def test_adapters_on_an_offloaded_model(tmp_path: Path) -> None:
    import peft

    def adapted(model: Any) -> Any:
        config = peft.LoraConfig(r=3, target_modules=["v_proj", "down_proj"], init_lora_weights=False)
        torch.manual_seed(0)
        return peft.get_peft_model(model, config).eval()

    resident = load_model(adapted(tiny_models.llama(torch.float32)))
    streamed = load_model(on_disk(adapted(tiny_models.llama(torch.float32)), tmp_path))
    assert resident.fingerprint == streamed.fingerprint
    counts = Counts(streamed.model)
    found, expected = (detach(loaded, input_ids=IDS[0]).jacobian("joint") for loaded in (streamed, resident))
    counts.reset()
    assert torch.equal(found.dense(), expected.dense())
    assert len(counts.names) == len(set(counts.names)) == 12


def test_weights_on_disk_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_models.llama(torch.float32)
    nn.init.constant_(model.model.layers[1].mlp.up_proj.weight[3:4], float("nan"))
    with pytest.raises(ModelError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds 24 NaN"):
        load_model(on_disk(model, tmp_path))


def test_weights_on_disk_that_are_gone_are_one_line_and_other_precisions_are_loaded(tmp_path: Path) -> None:
    model = on_disk(tiny_models.llama(torch.float32), tmp_path)
    with pytest.raises(InputError, match="its weights are offloaded by accelerate: load it as you want it"):
        load_model(model, dtype="float64")
    J = detach(load_model(model), input_ids=IDS[0]).jacobian(0)
    (lost,) = tmp_path.rglob("model.layers.1.mlp.up_proj.weight.dat")
    lost.unlink()
    with pytest.raises(ModelError, match=r"a weight that accelerate put on disk cannot be read .*up_proj\.weight"):
        J.rmatmat(torch.ones(J.shape[0], 1))


def test_weights_that_are_nowhere_are_refused_by_name() -> None:
    model = tiny_models.llama(torch.float32)
    model.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has no values"):
        detach(LoadedModel(model, None, "empty", ""), input_ids=IDS)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_packed_weights_that_are_offloaded_are_refused_by_name(kind: str) -> None:
    model = quantised(tiny_models.llama(torch.float32, hidden_size=64, intermediate_size=128, head_dim=16), kind)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.\S+\.weight is packed by bitsandbytes and off"):
        load_model(model)


def test_a_model_that_cannot_run_offloaded_is_refused_in_one_line(tmp_path: Path) -> None:
    model = on_disk(MOE["Llama 4"](torch.float32), tmp_path)
    with pytest.raises(UnsupportedModelError, match="does not run with its weights offloaded"):
        detach(load_model(model), input_ids=IDS[0])


def test_what_is_known_of_a_module_is_forgotten_with_it() -> None:
    model = in_host_memory(tiny_models.llama(torch.float32))
    first = offloaded(model.lm_head)
    assert first is offloaded(model.lm_head)
    assert isinstance(first, OffloadedModule)
    assert offloaded(tiny_models.llama().lm_head) is None


def test_the_main_job_on_a_model_larger_than_its_budget(smollm2: LoadedModel, tmp_path: Path) -> None:
    """SmolLM2 (538 MB in float32) with 150 MB of host memory: most blocks stay on disk."""
    budget = {"device_map": "auto", "max_memory": {"cpu": "150MB"}, "offload_folder": str(tmp_path)}
    streamed = load_model("smollm2", **budget)
    places = {parameter.device.type for parameter in streamed.model.parameters()}
    assert places == {"cpu", "meta"}
    assert streamed.fingerprint == smollm2.fingerprint
    prompt = "The bridge out of Marin is the"
    found, expected = (analyze(loaded, prompt, k=1, tokens=[3]) for loaded in (streamed, smollm2))
    for a, b in zip(found.tokens, expected.tokens, strict=True):
        assert a.status == b.status == "converged"
        assert a.singular_values == b.singular_values
        assert torch.equal(a.U, b.U)
        assert torch.equal(a.V, b.V)


@pytest.mark.parametrize("way", ["offload", "rebuild"])
def test_a_schedule_on_offloaded_weights(way: Any, tmp_path: Path) -> None:
    """Gates that are made again read the gate projection with the block's other weights, once."""
    resident = load_model(tiny_models.llama(torch.float32))
    streamed = load_model(on_disk(tiny_models.llama(torch.float32), tmp_path))
    counts = Counts(streamed.model)
    with every_block(way):
        found, expected = (
            detach(loaded, input_ids=tiny_models.prompt_ids(60)[0], memory="1GB").jacobian("joint")
            for loaded in (streamed, resident)
        )
    X = torch.randn(expected.shape[1], 40, generator=torch.Generator().manual_seed(0))  # 2,400 rows
    counts.reset()
    assert torch.equal(found.matmat(X), expected.matmat(X))
    gates = [name for name in counts.names if "gate_proj" in name]
    assert len(gates) == (3 if way == "rebuild" else 0)
    assert len(counts.names) == len(set(counts.names)) == 12 + len(gates)

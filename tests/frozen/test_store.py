"""A network read back sweeps the same bit for bit; a file that is not whole or not ours is refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from detjac_lanczos.errors import ModelError, RunFileError, UnsupportedModelError
from detjac_lanczos.frozen import store
from detjac_lanczos.frozen.mapped import is_mapped
from detjac_lanczos.operators import DetachedNetwork, attention, detach, head, layer, mlp
from tests import tiny_models
from tests.every_block import every_block
from tests.tiny_models import dense
from tests.unreadable import UNREADABLE, no_descriptor_left

pytestmark = pytest.mark.usefixtures("one_thread")


def products(network: DetachedNetwork) -> list[Tensor]:
    tokens = [(p, i) for p, n in enumerate(network.lengths) for i in range(n)]
    batch = network.jacobians(tokens)
    generator = torch.Generator().manual_seed(0)
    blocks = [
        (i, torch.randn(24, 3, generator=generator, dtype=torch.float64).to(batch.dtype)) for i in range(len(tokens))
    ]
    branch = network.jacobian("joint", source=layer(1), target=mlp(2))
    return [
        *batch.matmat(blocks),
        *batch.rmatmat(blocks),
        branch.dense(),
        *(network.jacobian((p, 0)).offset for p in range(len(network.prompts))),
        *(network.jacobian((p, 0), target="logits").y for p in range(len(network.prompts))),
        network.streams.logits,
        network.streams.model_output,
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("freeze", ["gate", "up", "half"])
@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_a_network_read_back_sweeps_bit_for_bit_the_same(
    make: str, freeze: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    loaded = tiny_models.loaded(getattr(tiny_models, make)(dtype, bias=True))
    network = detach(loaded, input_ids=tiny_models.prompt_ids(9, 4), freeze=freeze)
    again = DetachedNetwork.load(network.save(tmp_path / "deep" / "folder"), loaded)
    assert (again.freeze, again.family) == (network.freeze, network.family)
    assert list(map(vars, again.prompts)) == list(map(vars, network.prompts))
    for found, expected in zip(products(again), products(network), strict=True):
        assert torch.equal(found, expected)
    assert again.reconstruction.relative_error == network.reconstruction.relative_error


@pytest.mark.parametrize("ways", [("rebuild", "rebuild"), ("offload", "offload"), ("rebuild", "keep")])
def test_so_does_one_that_keeps_less(ways: Any, tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.gemma(torch.float32, bias=True))
    with every_block(*ways):
        network = detach(loaded, input_ids=tiny_models.prompt_ids(9, 4), freeze="half", memory="1GB")
    again = DetachedNetwork.load(network.save(tmp_path), loaded)
    assert again.plan == network.plan
    assert (again.plan.mixing[0], again.plan.gates[0]) == ways
    for found, expected in zip(products(again), products(network), strict=True):
        assert torch.equal(found, expected)


def test_a_network_that_is_read_elsewhere_sweeps_as_that_device_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_models.loaded(tiny_models.llama(torch.float32))
    with every_block("offload"):
        network = detach(loaded, input_ids=[1, 2, 3], memory="1GB")
    path = network.save(tmp_path)
    monkeypatch.setattr(store.Rates, "of", lambda device: SimpleNamespace(overlaps=True))
    assert (network.plan.ahead, DetachedNetwork.load(path, loaded).plan.ahead) == (False, True)


def test_what_was_offloaded_lies_in_files_however_often_it_is_saved(tmp_path: Path) -> None:
    """Also where the file is written over that its tensors are mapped from."""
    loaded = tiny_models.loaded(tiny_models.gemma(torch.float32, bias=True))
    with every_block("offload"):
        network = detach(loaded, input_ids=tiny_models.prompt_ids(9, 4), freeze="half", memory="1GB")
    offloaded = {name for name, value in network.coefficients.items() if is_mapped(value)}
    once = DetachedNetwork.load(network.save(tmp_path / "a"), loaded)
    twice = DetachedNetwork.load(once.save(tmp_path / "b"), loaded)
    over = DetachedNetwork.load(once.replace(drop=[]).save(tmp_path / "a"), loaded)
    for again in (once, twice, over):
        assert {name for name, value in again.coefficients.items() if is_mapped(value)} == offloaded != set()
        assert again.plan == network.plan
        for found, expected in zip(products(again), products(network), strict=True):
            assert torch.equal(found, expected)
    with safe_open(tmp_path / "b" / "network.safetensors", "pt") as file:
        assert set(json.loads(file.metadata()["network"])["elsewhere"]) == offloaded


def test_dropped_branches_stay_dropped(tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.llama(bias=True))
    network = detach(loaded, input_ids=[3, 1, 4, 1, 5]).replace(drop=[head(0, 1), attention(1), mlp(2)])
    again = DetachedNetwork.load(network.save(tmp_path / "n.safetensors"), loaded)
    for found, expected in zip(products(again), products(network), strict=True):
        assert torch.equal(found, expected)


def test_embeddings_given_in_place_of_ids_come_back(tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.gemma())
    embeds = list(torch.randn(8, 24, dtype=torch.float64).split([5, 3]))
    network = detach(loaded, inputs_embeds=embeds)
    again = DetachedNetwork.load(network.save(tmp_path), loaded)
    for prompt, rows in enumerate(embeds):
        found = again.prompts[prompt].embeds
        assert found is not None and torch.equal(found, rows)
        assert torch.equal(again.jacobian((prompt, 2)).x, rows[2])


def test_only_the_whole_file_is_left_behind(tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.llama())
    network = detach(loaded, input_ids=[1, 2, 3])
    network.save(tmp_path)
    network.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_save_that_fails_leaves_no_folder_that_it_made(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tensors: object, path: Path, **_: object) -> None:
        path.write_text("half")
        raise error

    network = detach(tiny_models.loaded(tiny_models.llama()), input_ids=[1])
    monkeypatch.setattr(store, "save_file", fails)
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there" / "deep" / "folder", tmp_path / "there"):
        with pytest.raises((KeyboardInterrupt, RunFileError)):
            network.save(place)
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_the_same_model_in_another_dtype_is_told_so(tmp_path: Path) -> None:
    network = detach(tiny_models.loaded(tiny_models.llama(torch.float32)), input_ids=[1, 2, 3])
    network.save(tmp_path)
    with pytest.raises(RunFileError, match=r"was made in float32, and .* is in float64; load it with .* in float32"):
        DetachedNetwork.load(tmp_path, tiny_models.loaded(tiny_models.llama(torch.float64)))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = detach(tiny_models.loaded(tiny_models.llama()), input_ids=[1, 2]).save(tmp_path)
    with pytest.raises(RunFileError, match="other weights"):
        DetachedNetwork.load(path, tiny_models.loaded(tiny_models.llama(seed=1)))


def test_a_model_without_values_is_refused(tmp_path: Path) -> None:
    path = detach(tiny_models.loaded(tiny_models.llama()), input_ids=[1, 2]).save(tmp_path)
    with pytest.raises(UnsupportedModelError, match="has no values"):
        DetachedNetwork.load(path, (tiny_models.llama().to("meta"), None))


def test_what_only_made_the_factors_is_not_compared(tmp_path: Path) -> None:
    """They are saved; values of branches are of the model's own passes, and refused."""
    model = tiny_models.llama()
    network = detach((model, None), input_ids=[3, 1, 4, 1, 5])
    other = set_up_otherwise(model, rope_parameters={"rope_type": "default", "rope_theta": 3.0})
    found = DetachedNetwork.load(network.save(tmp_path), (other, None))
    assert torch.equal(found.jacobian(0).dense(), network.jacobian(0).dense())
    with pytest.raises(ModelError, match="gives other logits on the prompt"):
        _ = found.jacobian(0, target=mlp(0)).y


def set_up_otherwise(model: Any, **changes: Any) -> Any:
    """Return a model of the same weights and another configuration."""
    other = type(model)(type(model.config).from_dict(model.config.to_dict() | changes)).to(model.dtype).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    ("make", "changes", "where"),
    [
        (dense.granite, {"residual_multiplier": 0.1}, "block 0"),
        (dense.granite, {"embedding_multiplier": 1.6}, "the entry"),
        (dense.granite, {"logits_scaling": 2.4}, "the way to the logits"),
        (dense.granite, {"rms_norm_eps": 1e-4}, "block 0"),
        (dense.granite, {"hidden_act": "gelu"}, "block 0"),
        (dense.gemma2, {"final_logit_softcapping": None}, "the way to the logits"),
        (dense.gpt_neox, {"use_parallel_residual": False}, "block 0"),
        (dense.gpt_neox, {"num_attention_heads": 6}, "block 0"),
        (partial(dense.gpt_neox, num_attention_heads=6), {"num_attention_heads": 3}, "block 0"),
    ],
)
def test_a_model_of_the_same_weights_that_is_set_up_otherwise_is_refused(
    make: Any, changes: dict[str, Any], where: str, tmp_path: Path
) -> None:
    model = make(torch.float64)
    path = detach((model, None), input_ids=[3, 1, 4, 1, 5]).save(tmp_path)
    DetachedNetwork.load(path, (set_up_otherwise(model), None))
    with pytest.raises(RunFileError, match=rf"does not fit .*{where}.*; load it with the configuration it was made"):
        DetachedNetwork.load(path, (set_up_otherwise(model, **changes), None))


def test_a_number_that_was_set_in_place_since_is_seen(tmp_path: Path) -> None:
    model = dense.granite(torch.float64)
    path = detach((model, None), input_ids=[3, 1, 4, 1, 5]).save(tmp_path)
    model.model.layers[1].residual_multiplier = -3
    with pytest.raises(RunFileError, match=r"does not fit .*: block 1 is set up otherwise"):
        DetachedNetwork.load(path, (model, None))


def test_a_model_that_takes_no_such_coefficients_is_refused_in_the_same_way(tmp_path: Path) -> None:
    model = dense.gpt_neox(torch.float64)
    path = detach((model, None), input_ids=[3, 1, 4, 1, 5]).save(tmp_path)
    model.config.num_attention_heads = 5
    with pytest.raises(RunFileError, match=r"does not fit .*: blocks\.0 is not built as .*; load it with the config"):
        DetachedNetwork.load(path, (model, None))


def test_damaged_foreign_newer_and_missing_files_are_refused(tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.llama())
    path = detach(loaded, input_ids=[1, 2, 3]).save(tmp_path)
    whole = path.read_bytes()
    for cut in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(RunFileError, match="damaged"):
            DetachedNetwork.load(path, loaded)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunFileError, match="checksum"):
        DetachedNetwork.load(path, loaded)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata={"kind": "detjac network", "format": "8", "network": "{}"})
    with pytest.raises(RunFileError, match=r"has format 8, newer than 7; update"):
        DetachedNetwork.load(path, loaded)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(RunFileError, match="not a saved network"):
        DetachedNetwork.load(path, loaded)
    with pytest.raises(RunFileError, match="does not exist"):
        DetachedNetwork.load(tmp_path / "nothing.safetensors", loaded)


@pytest.mark.parametrize(("error", "said"), UNREADABLE, ids=repr)
def test_a_file_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    loaded = tiny_models.loaded(tiny_models.llama())
    path = detach(loaded, input_ids=[1, 2, 3]).save(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    for reader in ((store, "safe_open"), (Path, "open")):
        with monkeypatch.context() as now:
            now.setattr(*reader, fail)
            with pytest.raises(RunFileError, match=rf"^cannot read .*{said}") as caught:
                DetachedNetwork.load(path, loaded)
        assert "damaged" not in str(caught.value) and "exist" not in str(caught.value)
    DetachedNetwork.load(path, loaded)


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "freeze": lambda d: d.update(freeze="up"),
    "dropped": lambda d: d.update(dropped=["head.1.1"]),
    "ids": lambda d: d["prompts"][0].update(ids=[7, 8, 9]),
    "prompt removed": lambda d: d["prompts"].pop(),
    "freeze removed": lambda d: d.pop("freeze"),
    "fingerprint removed": lambda d: d.pop("fingerprint"),
    "setup removed": lambda d: d.pop("setup"),
    "plan no mapping": lambda d: d.update(plan=3),
    "blocks beyond the last": lambda d: d["plan"].update(mixing={"keep": "0-99"}),
    "seconds removed": lambda d: d["plan"].pop("seconds_per_sweep"),
    "plan of much memory": lambda d: d["plan"].update(memory="much"),
    "words for ids": lambda d: d["prompts"][0].update(ids=["the", "bridge", "out"]),
}


def test_a_description_that_was_changed_is_refused(tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.llama())
    path = detach(loaded, input_ids=[[1, 2, 3], [4, 5]], memory="1GB").save(tmp_path)
    header, tensors = _header(path), load_file(path)
    for change in CHANGES.values():
        description = json.loads(header["network"])
        change(description)
        save_file(tensors, path, metadata=header | {"network": json.dumps(description)})
        with pytest.raises(RunFileError, match="checksum"):
            DetachedNetwork.load(path, loaded)
    logits = tensors["logits"]
    for other in (logits.view(-1), logits.view(torch.int64)):
        save_file(tensors | {"logits": other}, path, metadata=header)
        with pytest.raises(RunFileError, match="checksum"):
            DetachedNetwork.load(path, loaded)
    for metadata, words in (
        ({"network": "[]"}, "damaged"),
        ({"network": "[" * 100_000}, "damaged"),
        ({"format": "five"}, "damaged"),
        ({"format": "6"}, "has format 6, older than 7; save the network again"),
    ):
        save_file(tensors, path, metadata=header | metadata)
        with pytest.raises(RunFileError, match=words):
            DetachedNetwork.load(path, loaded)


@pytest.mark.parametrize(
    "name", [name for name in CHANGES if "removed" in name or name.startswith(("plan", "blocks", "words"))]
)
def test_a_description_that_makes_no_sense_is_refused(name: str, tmp_path: Path) -> None:
    """Also where its checksum is its own."""
    loaded = tiny_models.loaded(tiny_models.llama())
    path = detach(loaded, input_ids=[[1, 2, 3], [4, 5]], memory="1GB").save(tmp_path)
    header, tensors = _header(path), load_file(path)
    description = json.loads(header["network"])
    CHANGES[name](description)
    text = json.dumps(description)
    save_file(tensors, path, metadata=header | {"network": text, "checksum": store._checksum(tensors, text)})
    with pytest.raises(RunFileError, match=r"damaged or foreign \(\w+: .*\); save the network again"):
        DetachedNetwork.load(path, loaded)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("coefficient.blocks.0.mlp.gate_proj.activation", lambda value: value[0, 0]),
        ("coefficient.blocks.0.self_attn.mixing.0", lambda value: value[0, 0]),
        ("coefficient.blocks.1.self_attn.mixing.0", lambda value: value[:0]),
        ("residual.1", lambda value: value[:-1]),
        ("embeddings", lambda value: value[0]),
        ("output", lambda value: value.to(torch.complex64)),
        ("logits", lambda value: value[:1]),
    ],
)
def test_tensors_of_which_no_network_can_be_made_are_refused(
    name: str, change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    """Also where their checksum is their own."""
    loaded = tiny_models.loaded(tiny_models.llama())
    path = detach(loaded, input_ids=[[1, 2, 3], [4, 5]]).save(tmp_path)
    header, tensors = _header(path), load_file(path)
    tensors[name] = change(tensors[name]).clone()
    save_file(tensors, path, metadata=header | {"checksum": store._checksum(tensors, header["network"])})
    with pytest.raises(RunFileError, match=r"damaged or foreign \(\w+: .*\); save the network again|does not fit"):
        DetachedNetwork.load(path, loaded)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="cannot write"):
        detach(tiny_models.loaded(tiny_models.llama()), input_ids=[1]).save(tmp_path / "file" / "below")


def test_no_other_place_is_advised_where_descriptors_have_run_out(tmp_path: Path) -> None:
    network = detach(tiny_models.loaded(tiny_models.llama()), input_ids=[1])
    network.save(tmp_path)  # what is imported for it is imported
    with pytest.raises(RunFileError, match=r"cannot write .*: too many files are open \(.*limit"), no_descriptor_left():
        network.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert network.save(tmp_path / "other").is_file()


@pytest.mark.parametrize("name", ["a\0b", "a\0b.safetensors", "n" * 300, "n" * 300 + ".safetensors"])
def test_names_that_no_file_can_have_are_refused(name: str, tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.llama())
    with pytest.raises(RunFileError, match="cannot write"):
        detach(loaded, input_ids=[1]).save(tmp_path / name)
    with pytest.raises(RunFileError, match="does not exist"):
        DetachedNetwork.load(tmp_path / name, loaded)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma])
def test_branch_values_come_from_the_pass_that_was_frozen_or_not_at_all(make: Any, tmp_path: Path) -> None:
    """What shapes a mixing enters no map: a saved network is joined with it, and its sweeps are the same."""
    network = detach((make(), None), input_ids=tiny_models.prompt_ids(9)[0])
    network.save(tmp_path / "network.safetensors")
    same, other = make(), make()
    for block in other.model.layers:
        block.self_attn.scaling *= 3
    values = [
        DetachedNetwork.load(tmp_path / "network.safetensors", (model, None)).jacobian("joint", target=attention(1))
        for model in (same, other)
    ]
    assert values[0].reconstruction.relative_error < 1e-13
    x = torch.randn(values[1].shape[1], 1, dtype=torch.float64)
    assert torch.equal(values[1].matmat(x), values[0].matmat(x))
    with pytest.raises(ModelError, match=r"gives other logits on the prompt than when it was frozen.*detach again"):
        _ = values[1].y

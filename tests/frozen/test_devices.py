"""A model spread over two devices: rows move between blocks, weights and coefficients stay where they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import PrefixedDataset
from torch import Tensor

from detjac_lanczos.errors import RunFileError
from detjac_lanczos.frozen.sources import sources_of
from detjac_lanczos.models import load_model
from detjac_lanczos.operators import DetachedNetwork, attention, detach, layer, mlp, probe
from detjac_lanczos.operators.own_parts import distances_of_parts
from detjac_lanczos.reading import decode_left, decode_right
from tests import tiny_models
from tests.every_block import every_block
from tests.imitated_devices import FIRST, SECOND, Devices
from tests.tiny_models.dense import llama
from tests.tiny_models.moe import MOE

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = tiny_models.prompt_ids(9, 4)
MODELS = tiny_models.DENSE | MOE
NAMES = ["Llama biased", "Gemma 2", "GPT-2", "Granite", "OPT post-norm", "Mixtral", "gpt-oss", "DeepSeek-V3"]


def spread(model: Any, devices: Devices) -> Any:
    """Put the head and all blocks but the first on the second device, as accelerate does; the final norm stays."""
    blocks = model.get_decoder().get_submodule("h" if hasattr(model.get_decoder(), "h") else "layers")
    for module in model.modules():
        add_hook_to_module(module, AlignDevicesHook(execution_device=FIRST, place_submodules=False))
    for part in (*blocks[1:], model.get_output_embeddings()):
        for module in part.modules():
            add_hook_to_module(module, AlignDevicesHook(execution_device=SECOND, place_submodules=False))
    assert devices.place_of(next(blocks[2].parameters())) == SECOND
    return model


def results(network: DetachedNetwork) -> list[Tensor]:
    rows = torch.randn(3, network.output_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [network.streams.output, network.streams.logits, network.streams.model_output, *network.streams.residual]
    targets = ("output", "residual", "logits", probe(rows), layer(1), attention(2), mlp(0))
    for target in targets:
        J = network.jacobian("joint", target=target)
        found += [J.dense(), J.T.dense(), J.y, J.offset]
    found.append(network.jacobian("joint", source=layer(2), target="output").dense())
    batch = network.jacobians([(0, 2), (1, 1), (0, 5)])
    blocks = [(i, torch.eye(batch.operators[0].shape[1], 2, dtype=torch.float64)) for i in range(3)]
    cotangents = [(i, torch.eye(network.output_size, 2, dtype=torch.float64)) for i in range(3)]
    return [*found, *batch.matmat(blocks), *batch.rmatmat(cotangents)]


def test_modules_of_a_spread_model_are_compared_where_they_are() -> None:
    plain = detach(load_model(llama(torch.bfloat16)), input_ids=IDS)
    expected = distances_of_parts(plain.model, plain.family, plain.prompts[0])
    with Devices() as devices:
        model = spread(llama(torch.bfloat16), devices)
        assert distances_of_parts(model, plain.family, plain.prompts[0]) == expected
    given = (SECOND, FIRST, plain.streams.model_output[: plain.lengths[0]].nbytes)
    assert devices.transfers.count(given) >= 4 * 2, "two blocks of four modules wait in host memory"


@pytest.mark.parametrize("name", NAMES)
def test_a_spread_model_is_served_in_float32(name: str) -> None:
    expected = detach(load_model(MODELS[name](torch.float32)), input_ids=IDS).jacobian(0).dense()
    with Devices() as devices:
        model = spread(MODELS[name](torch.float32), devices)
        found = detach(load_model(model), input_ids=IDS).jacobian(0).dense()
        assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("name", NAMES)
def test_a_spread_network_gives_the_same_numbers(name: str) -> None:
    expected = results(detach(load_model(MODELS[name](torch.float64)), input_ids=IDS))
    with Devices() as devices:
        model = spread(MODELS[name](torch.float64), devices)
        network = detach(load_model(model), input_ids=IDS)
        found = results(network)
        assert all(tensor.device == FIRST for tensor in found)
        places = {key.split(".")[1]: value.device for key, value in network.coefficients.items() if "blocks" in key}
        assert places == {"0": FIRST, "1": SECOND, "2": SECOND}
        assert model.config._attn_implementation != "detjac_observed"
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "way", "freeze"),
    [("Gemma 2", "rebuild", "gate"), ("gpt-oss", "offload", "gate"), ("Llama biased", "offload", "half")],
)
def test_so_does_one_that_keeps_less(name: str, way: Any, freeze: Any) -> None:
    expected = results(detach(load_model(MODELS[name](torch.float64)), input_ids=IDS, freeze=freeze))
    with Devices() as devices, every_block(way):
        model = spread(MODELS[name](torch.float64), devices)
        found = results(detach(load_model(model), input_ids=IDS, freeze=freeze, memory="1GB"))
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b) if way == "offload" else (a - b).norm() <= 1e-12 * b.norm()


def transfers(devices: Devices, J: Any, forwards: bool) -> list[tuple[Any, Any, int]]:
    """Return what moves in a sweep of five columns: (from, to, bytes). Index tensors have moved in one before."""
    product, width = (J.matmat, J.shape[1]) if forwards else (J.rmatmat, J.shape[0])
    columns = torch.eye(width, 5, dtype=torch.float64).to(J.device)
    product(columns)
    devices.transfers.clear()
    product(columns)
    return devices.transfers


@pytest.mark.parametrize("forwards", [True, False])
def test_rows_move_once_each_way_and_nothing_moves_on_one_device(forwards: bool) -> None:
    row = 24 * 8
    with Devices() as devices:
        J = detach(load_model(tiny_models.llama()), input_ids=IDS).jacobian(3)
        assert transfers(devices, J, forwards) == []
        J = detach(load_model(spread(tiny_models.llama(), devices)), input_ids=IDS).jacobian(3)
        many, few = 6 * 5 * row, 5 * row  # positions 3 to 8 before the last mixing, one after it
        there, back = (many, few) if forwards else (few, many)
        assert transfers(devices, J, forwards) == [(FIRST, SECOND, there), (SECOND, FIRST, back)]
        # Granite's multipliers are numbers, which lie nowhere.
        J = detach(load_model(moved_to(MODELS["Granite"](torch.float64))), input_ids=IDS).jacobian(3, target="logits")
        assert transfers(devices, J, forwards) == []


@pytest.mark.parametrize("forwards", [True, False])
def test_weights_that_stream_move_once_a_sweep_and_nothing_else_does(forwards: bool) -> None:
    """Block 0 lies on the first device; the others and the head stay in its memory and run on the second."""
    expected = detach(load_model(tiny_models.llama(bias=True)), input_ids=IDS).jacobian(3, target="logits")
    with Devices() as devices:
        model = streamed(tiny_models.llama(bias=True))
        network = detach(load_model(model), input_ids=IDS)
        assert network.device == FIRST
        J = network.jacobian(3, target="logits")
        found = list(transfers(devices, J, forwards))
        assert torch.equal(J.dense(), expected.dense())
        assert torch.equal(J.T.dense(), expected.T.dense())
    row, columns = 24 * 8, 5
    widths = {"v": (20, 24), "o": (24, 40), "up": (40, 24), "down": (24, 40)}
    block = [size for f, d in widths.values() for size in (8 * f * d, 8 * f)]  # a matrix and its bias
    weights = [*block, *block, 8 * 40 * 24]
    many, few, logits = 6 * columns * row, columns * row, columns * 40 * 8
    to_second, to_first = ([many, few], [few, logits]) if forwards else ([logits, few], [few, many])
    wanted = [(FIRST, SECOND, size) for size in weights + to_second] + [(SECOND, FIRST, size) for size in to_first]
    assert sorted(found, key=str) == sorted(wanted, key=str)


def streamed(model: Any) -> Any:
    """Keep all blocks but the first, and the head, in the memory of the first device; run them on the second."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for part in ("", "model.layers.1", "model.layers.2", "lm_head"):
        for name, module in model.get_submodule(part).named_modules(prefix=part):
            if not part:
                hook = AlignDevicesHook(execution_device=FIRST, place_submodules=False)
            else:
                kept = PrefixedDataset(weights, f"{name}.")
                hook = AlignDevicesHook(execution_device=SECOND, offload=True, weights_map=kept)
            add_hook_to_module(module, hook)
    return model


def test_the_ordinary_jacobian_and_decoding_of_a_spread_model() -> None:
    expected = detach(load_model(tiny_models.llama()), input_ids=IDS)
    with Devices() as devices:
        network = detach(load_model(spread(tiny_models.llama(), devices)), input_ids=IDS)
        for target in ("output", "logits", layer(0)):
            found, wanted = (n.jacobian("joint", target=target, frozen=False).dense() for n in (network, expected))
            assert (found - wanted).norm() <= 1e-12 * wanted.norm()
        U, V = torch.eye(24, dtype=torch.float64)[:, :2], torch.eye(24, dtype=torch.float64)[:, 3:5]
        decoded = [decode_left(n, U, n.jacobian(0, target="residual").y, "residual") for n in (network, expected)]
        assert decoded[0][0] == decoded[1][0]
        assert decode_right(network, V * decoded[0][1]) == decode_right(expected, V * decoded[1][1])


def test_a_saved_network_asks_for_one_device(tmp_path: Path) -> None:
    loaded = load_model(tiny_models.llama())
    network = detach(loaded, input_ids=IDS)
    with Devices() as devices:
        spread_model = load_model(spread(tiny_models.llama(), devices))
        path = detach(spread_model, input_ids=IDS).save(tmp_path)
        with pytest.raises(RunFileError, match="joins a model on one device, not on cpu, cpu:1"):
            DetachedNetwork.load(path, spread_model)
    again = DetachedNetwork.load(path, loaded)
    assert torch.equal(again.jacobian(2).dense(), network.jacobian(2).dense())


OFFLOADED = ("self_attn.mixing.0", "mlp.gate_proj.activation")


def moved_to(model: Any) -> Any:
    """Put a whole model on the second device."""
    for module in model.modules():
        add_hook_to_module(module, AlignDevicesHook(execution_device=SECOND, place_submodules=False))
    return model


@pytest.mark.parametrize("forwards", [True, False])
def test_offloaded_factors_move_once_a_sweep_and_nothing_else_does(forwards: bool) -> None:
    with Devices() as devices, every_block("offload"):
        network = detach(load_model(moved_to(tiny_models.llama())), input_ids=IDS[0], memory="1GB")
        away = {name: value for name, value in network.coefficients.items() if value.device == FIRST}
        assert set(away) == {f"blocks.{i}.{part}" for i in range(3) for part in OFFLOADED}
        found = transfers(devices, network.jacobian(3), forwards)
        wanted = [(FIRST, SECOND, value.nbytes) for value in away.values()]
        assert sorted(found, key=str) == sorted(wanted, key=str)
        sources = [
            source for stage in network.stages for branch in stage.branches for source in sources_of(branch.chain)
        ]
        assert len(sources) == 6
        assert all(source._here is None for source in sources)


def test_a_saved_network_keeps_offloaded_factors_where_they_are(tmp_path: Path) -> None:
    with Devices(), every_block("offload"):
        loaded = load_model(moved_to(tiny_models.llama()))
        network = detach(loaded, input_ids=IDS[0], memory="1GB")
        again = DetachedNetwork.load(network.save(tmp_path), loaded)
        places = {name: value.device for name, value in network.coefficients.items()}
        assert {FIRST, SECOND} == set(places.values())
        assert {name: value.device for name, value in again.coefficients.items()} == places
        assert torch.equal(again.jacobian(3).dense(), network.jacobian(3).dense())

"""A prompt out of a padded batch is what the caller's model computes for its row of the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen import families
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.precision import LiftToFloat64
from detjac_lanczos.operators import DetachedNetwork, attention, detach, mlp
from tests import tiny_models
from tests.oracles import OracleA, embeddings_of
from tests.tiny_models.dense import SIZES
from tests.tiny_models.draw import drawn

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = ["Llama", "Gemma 3", "GPT-2", "OPT", "Ministral 3"]
LENGTHS = (12, 5, 9)
ROWS = tiny_models.prompt_ids(*LENGTHS)
WIDTH = max(LENGTHS) + 2
PAD = 7


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of the batch, wider than its longest prompt."""
    ids, mask = torch.full((len(ROWS), WIDTH), PAD), torch.zeros(len(ROWS), WIDTH, dtype=torch.long)
    for i, row in enumerate(ROWS):
        real = slice(WIDTH - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, real], mask[i, real] = torch.tensor(row), 1
    return ids, mask


def positions_of(mask: Tensor, kind: str) -> Tensor | None:
    """No positions, those of real tokens, one row for all, or rows with a jump in each."""
    shared = 2 * torch.arange(WIDTH) + 1
    jump = torch.arange(WIDTH).repeat(len(ROWS), 1)
    jump[:, WIDTH // 2 :] -= 3
    return {"default": None, "counted": (mask.cumsum(1) - 1).clamp(min=0), "shared": shared, "jump": jump}[kind]


def of_the_batch(model: Any, **inputs: Any) -> tuple[list[Tensor], Tensor]:
    """Output rows of every prompt, and logits at its last token, from one pass of the caller's model."""
    assert model.config._attn_implementation == "sdpa"
    mask = inputs["attention_mask"].bool()
    seen = []
    decoder = family_of(model).decoder_of(model)
    with torch.no_grad(), decoder.register_forward_hook(lambda _, args, out: seen.append(out.last_hidden_state)):
        logits = model(**inputs, use_cache=False).logits
    last = [int(row.nonzero().max()) for row in mask]
    return [y[real] for y, real in zip(seen[0], mask, strict=True)], logits[torch.arange(len(mask)), last]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["default", "counted", "shared", "jump"])
@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_is_its_row_of_the_padded_batch(name: str, positions: str, side: str) -> None:
    model = tiny_models.DENSE[name](torch.float64)
    ids, mask = padded(side)
    position_ids = positions_of(mask, positions)
    network = detach(tiny_models.loaded(model), input_ids=ids, attention_mask=mask.bool(), position_ids=position_ids)
    assert network.lengths == LENGTHS
    assert [list(prompt.ids) for prompt in network.prompts] == ROWS
    inputs = {"input_ids": ids, "attention_mask": mask}
    if position_ids is not None:
        inputs["position_ids"] = position_ids.expand(len(ROWS), -1)
    own = torch.cat(of_the_batch(model, **inputs)[0])
    assert (network.streams.model_output - own).norm() <= 1e-6 * own.norm()
    with LiftToFloat64():
        outputs, logits = of_the_batch(model, **inputs)
    output = torch.cat(outputs)
    assert (network.streams.output - output).norm() <= 1e-12 * output.norm()
    assert (network.streams.logits - logits).norm() <= 1e-12 * logits.norm()
    for prompt in range(len(ROWS)):
        assert network.jacobian((prompt, 0)).reconstruction.norm_error <= 1e-13


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_of_a_padded_batch_give_the_same_network(name: str) -> None:
    model = tiny_models.DENSE[name](torch.float64)
    loaded = tiny_models.loaded(model)
    ids, mask = padded("left")
    embeds = torch.stack([embeddings_of(model, row) for row in ids.tolist()])
    embeds[~mask.bool()] = float("nan")
    expected = detach(loaded, input_ids=ids, attention_mask=mask)
    for given in (embeds, list(embeds)):
        network = detach(loaded, inputs_embeds=given, attention_mask=mask.tolist())
        assert torch.equal(network.streams.output, expected.streams.output)
        assert torch.equal(network.streams.embeddings, expected.streams.embeddings)


def test_prompts_of_different_lengths_need_no_padding() -> None:
    model = tiny_models.llama()
    loaded = tiny_models.loaded(model)
    positions = [[3 * i for i in range(n)] for n in LENGTHS]
    network = detach(loaded, input_ids=ROWS, position_ids=positions)
    embeds = [embeddings_of(model, row) for row in ROWS]
    by_embeds = detach(loaded, inputs_embeds=embeds, position_ids=positions)
    assert torch.equal(network.streams.output, by_embeds.streams.output)
    for prompt, (row, where) in enumerate(zip(ROWS, positions, strict=True)):
        alone = detach(loaded, input_ids=row, position_ids=where)
        start = network.start_of(prompt)
        assert torch.equal(network.streams.output[start : start + len(row)], alone.streams.output)


@pytest.mark.parametrize("name", ["GPT-2", "Ministral 3"])
def test_jacobians_at_given_positions_are_the_oracles(name: str) -> None:
    model = tiny_models.DENSE[name](torch.float64)
    positions = torch.tensor([[4, 5, 6, 9, 10]])
    network = detach(tiny_models.loaded(model), input_ids=ROWS[1], position_ids=positions)
    oracle = OracleA(model, embeddings_of(model, ROWS[1]), position_ids=positions)
    expected = oracle.jacobian("embeddings", "output", 4).flatten(1)
    found = network.jacobian("joint").dense()
    assert (found - expected).norm() <= 1e-11 * expected.norm()
    elsewhere = detach(tiny_models.loaded(model), input_ids=ROWS[1]).jacobian("joint").dense()
    assert (elsewhere - expected).norm() > 1e-3 * expected.norm()


def test_ordinary_jacobians_are_those_at_the_given_positions() -> None:
    model = tiny_models.DENSE["Ministral 3"](torch.float64)
    positions = torch.tensor([[4, 5, 6, 9, 10]])
    network = detach(tiny_models.loaded(model), input_ids=ROWS[1], position_ids=positions)
    x = embeddings_of(model, ROWS[1])

    def last_output(rows: Tensor) -> Tensor:
        mask = torch.ones(1, 5, dtype=torch.long)
        with LiftToFloat64():
            return model.model(inputs_embeds=rows[None], attention_mask=mask, position_ids=positions)[0][0, -1]

    expected = torch.autograd.functional.jacobian(last_output, x)
    found = network.jacobian("joint", frozen=False).dense().unflatten(1, x.shape)
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_positions_that_begin_again_part_no_sequences() -> None:
    """Without a mask transformers reads a jump in the positions as packing and cuts attention there."""
    model = tiny_models.llama()
    ids, positions = torch.tensor([ROWS[0]]), torch.arange(12).remainder(6)[None]
    network = detach(tiny_models.loaded(model), input_ids=ids, position_ids=positions)
    with LiftToFloat64(), torch.no_grad():
        whole = model.model(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False)[0][0]
        parted = model.model(ids, position_ids=positions, use_cache=False)[0][0]
    assert (network.streams.output - whole).norm() <= 1e-12 * whole.norm()
    assert (network.streams.output - parted).norm() > 1e-3 * whole.norm()


def test_a_saved_network_keeps_its_positions(tmp_path: Path) -> None:
    loaded = tiny_models.loaded(tiny_models.DENSE["Ministral 3"](torch.float64))
    ids, mask = padded("left")
    network = detach(loaded, input_ids=ids, attention_mask=mask)
    again = DetachedNetwork.load(network.save(tmp_path), loaded)
    assert list(map(vars, again.prompts)) == list(map(vars, network.prompts))
    assert again.prompts[1].position_ids == tuple(range(WIDTH - LENGTHS[1], WIDTH))
    for target in ("attention", "mlp"):
        before, after = (n._branch_values(target, 2) for n in (network, again))
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": [[1, 0, 1]]}, "row 0 has a hole at 1"),
        ({"attention_mask": [[0, 0, 0]]}, "row 0 is all padding"),
        ({"attention_mask": [[1, 2, 1]]}, "1 for a real token"),
        ({"attention_mask": [[1, 1]]}, "rows of 3"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "rows of 3"),
        ({"attention_mask": torch.ones(2, 3)}, "rows of 3"),
        ({"attention_mask": "left"}, "rows of 3"),
        ({"input_ids": [[1] * 3] * 2, "attention_mask": [[1] * 3]}, "attention_mask must have .* rows of 3, 3"),
        ({"position_ids": [0, 1]}, "rows of 3"),
        ({"position_ids": [[0, 1, 2]] * 2}, "rows of 3"),
        ({"position_ids": [0.0, 1.0, 2.0]}, "must be integers"),
        ({"position_ids": [False, True, True]}, "must be integers"),
        ({"position_ids": [0, 1, -1]}, r"position -1 cannot be used; positions go from 0 to 63"),
        ({"position_ids": [0, 1, 64]}, "position 64 cannot be used"),
        ({"input_ids": [[1] * 3, [1] * 2], "attention_mask": [[1] * 3] * 2}, "rows of 3, 2"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 1, 3, 24)}, r"\(prompts, positions, 24\)"),
        ({"input_ids": None, "inputs_embeds": [torch.zeros(3, 24), torch.zeros(3, 5)]}, "one tensor per prompt"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(0, 24)}, "inputs_embeds must be"),
        ({"input_ids": None, "prompt": "text", "position_ids": [0]}, "text is not padded"),
        ({"input_ids": None, "prompt": ["text"], "attention_mask": [[1]]}, "text is not padded"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        detach(tiny_models.loaded(tiny_models.llama()), **{"input_ids": [[1, 2, 3]]} | options)
    assert "\n" not in str(caught.value)


def test_left_padding_may_not_lead_out_of_the_context() -> None:
    loaded = tiny_models.loaded(tiny_models.DENSE["GPT-2"](torch.float64))
    with pytest.raises(InputError, match="position 64 cannot be used"):
        detach(loaded, input_ids=torch.ones(1, 80, dtype=torch.long), attention_mask=[[0] * 64 + [1] * 16])
    network = detach(loaded, input_ids=torch.ones(1, 80, dtype=torch.long), attention_mask=[[1] * 16 + [0] * 64])
    assert network.lengths == (16,)


def longrope(original: int) -> Any:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * 3,
        "long_factor": [3.0] * 3,
    }
    config = transformers.Phi3Config(
        **SIZES | {"rope_parameters": rope, "head_dim": 6, "original_max_position_embeddings": original}
    )
    return drawn(transformers.Phi3ForCausalLM(config), torch.float64)


@pytest.mark.parametrize("side", ["left", "right"])
def test_longrope_follows_the_longest_row_of_a_batch(side: str) -> None:
    """On the left every row ends at the same position; on the right only the longest one decides for all."""
    ids, mask = padded(side)
    for original in (WIDTH, WIDTH - 1, 4):
        model = longrope(original)
        if side == "right" and original < WIDTH:
            with pytest.raises(InputError, match=f"longrope .* from {original} tokens on"):
                detach(tiny_models.loaded(model), input_ids=ids, attention_mask=mask)
            continue
        network = detach(tiny_models.loaded(model), input_ids=ids, attention_mask=mask)
        # The long frequencies are computed by the first pass that needs them, and kept: in float32, as everywhere.
        of_the_batch(model, input_ids=ids, attention_mask=mask)
        with LiftToFloat64():
            output = torch.cat(of_the_batch(model, input_ids=ids, attention_mask=mask)[0])
        assert (network.streams.output - output).norm() <= 1e-12 * output.norm()
    if side == "right":  # nor where the longest row has no padding itself
        with pytest.raises(InputError, match=r"longrope .* from 4 tokens on"):
            detach(tiny_models.loaded(longrope(4)), input_ids=ids[:, :-2], attention_mask=mask[:, :-2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_dynamic_frequencies_follow_the_longest_row_of_a_batch(side: str) -> None:
    ids, mask = padded(side)
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}
    model = tiny_models.llama(max_position_embeddings=8, rope_parameters=rope)
    loaded = tiny_models.loaded(model)
    if side == "right":
        with pytest.raises(InputError, match=r"dynamic frequencies .* from 8 tokens on"):
            detach(loaded, input_ids=ids, attention_mask=mask)
        return
    network = detach(loaded, input_ids=ids, attention_mask=mask)
    with LiftToFloat64():
        output = torch.cat(of_the_batch(model, input_ids=ids, attention_mask=mask)[0])
    assert (network.streams.output - output).norm() <= 1e-12 * output.norm()


def test_branches_of_a_prompt_beyond_longropes_original_length_are_those_of_its_streams() -> None:
    network = detach(tiny_models.loaded(longrope(4)), input_ids=tiny_models.prompt_ids(12)[0])
    for target in (attention(1), mlp(2)):
        assert network.jacobian(target=target).reconstruction.relative_error <= 1e-13


def test_longrope_may_be_that_of_one_kind_of_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model's structure alone, it is run again: frequencies of another rounding would be refused."""
    monkeypatch.setattr(families, "FAMILIES", ())
    full = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4,
        "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [2.0, 2.3, 2.6],
    }
    rope = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 30.0}}
    model = tiny_models.DENSE["Gemma 3"](torch.float64, rope_parameters=rope, head_dim=6)
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(12)[0])
    assert network.reconstruction.relative_error <= 1e-13


def test_what_is_made_in_inference_mode_serves_outside_of_it() -> None:
    """Longrope writes its frequencies in place, those of the copy that ordinary Jacobians run, too."""
    given = {"model": (longrope(4), None), "input_ids": tiny_models.prompt_ids(12)[0]}
    network = detach(**given)
    expected = network.jacobian(0, frozen=False).dense()
    first_asked_there = detach(**given)
    with torch.inference_mode():
        assert torch.equal(first_asked_there.jacobian(0, frozen=False).dense(), expected)
        made_there, converted_there = detach(**given), detach(**given, dtype="float32")
    for found in (first_asked_there, made_there):
        assert torch.equal(found.jacobian(0, frozen=False).dense(), expected)
        assert not any(value.is_inference() for value in (*found.coefficients.values(), found.streams.output))
    assert torch.allclose(converted_there.jacobian(0, frozen=False).dense().double(), expected, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_llama_4_scales_queries_by_their_place_in_the_row(side: str) -> None:
    ids, mask = padded(side)
    for scale in (WIDTH + 1, WIDTH, 5):
        options = {
            "floor_scale": scale,
            "attn_scale": 0.5,
            "attn_temperature_tuning": True,
            "no_rope_layers": [1, 0, 1],
        }
        config = transformers.Llama4TextConfig(
            **SIZES | options | {"intermediate_size_mlp": 40, "moe_layers": [], "attention_chunk_size": 4}
        )
        model = drawn(transformers.Llama4ForCausalLM(config), torch.float64)
        if side == "left" and scale <= WIDTH:
            with pytest.raises(InputError, match=rf"scales queries .* from {scale} tokens on; pad on the right"):
                detach(tiny_models.loaded(model), input_ids=ids, attention_mask=mask)
            continue
        network = detach(tiny_models.loaded(model), input_ids=ids, attention_mask=mask)
        with LiftToFloat64():
            output = torch.cat(of_the_batch(model, input_ids=ids, attention_mask=mask)[0])
        assert (network.streams.output - output).norm() <= 1e-12 * output.norm()

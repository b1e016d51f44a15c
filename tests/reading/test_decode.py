"""Decoding is the head, or the embedding table, applied by hand; signs agree with the output."""

import dataclasses
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, UnsupportedModelError
from detjac_lanczos.frozen import families
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.words import Project, Scale, Softcap
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.operators import DetachedNetwork, detach, layer, mlp, probe
from detjac_lanczos.reading import decode, decode_left, decode_right, head
from detjac_lanczos.reading.head import head_of
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE
from tests.tiny_models.undeclared import UNDECLARED


def with_a_bias(dtype: torch.dtype) -> Any:
    """Return a Cohere 2, which scales its logits, with a head that has a bias."""
    model = DENSE["Cohere 2"](dtype)
    model.lm_head.bias = torch.nn.Parameter(3 * torch.randn(tiny_models.VOCABULARY, dtype=dtype))
    return model


EVERY = DENSE | MOE | UNDECLARED | {"a bias": with_a_bias}


def triplets_of(network: DetachedNetwork, **where: object) -> tuple[Tensor, Tensor, Tensor]:
    U, _, Vh = torch.linalg.svd(network.jacobian(2, **where).dense(), full_matrices=False)  # type: ignore[arg-type]
    return U[:, :4], Vh[:4].T, network.jacobian(2, **where).y  # type: ignore[arg-type]


def test_signs_agree_with_the_output_and_do_not_depend_on_the_solver(network: DetachedNetwork) -> None:
    U, V, y = triplets_of(network)
    flips = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=U.dtype)
    left, signs = decode_left(network, U, y, "output")
    flipped_left, flipped_signs = decode_left(network, U * flips, y, "output")
    assert (y @ (U * signs) > 0).all()
    assert torch.equal(signs, flips * flipped_signs)
    assert left == flipped_left
    assert decode_right(network, V * signs) == decode_right(network, V * flips * flipped_signs)


def test_left_vectors_at_the_output_meet_the_head(network: DetachedNetwork) -> None:
    U, _, y = triplets_of(network)
    decoded, signs = decode_left(network, U, y, "output", top=6)
    logits = network.model.get_output_embeddings().weight.detach() @ (U * signs)
    shares = torch.softmax(y.norm() * logits, dim=0)
    for j, entries in enumerate(decoded):
        assert [entry.id for entry in entries] == logits[:, j].topk(6).indices.tolist()
        for entry in entries:
            assert entry.logit == pytest.approx(float(logits[entry.id, j]), rel=1e-12)
            assert entry.score == pytest.approx(float(shares[entry.id, j]), rel=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_the_output_itself_decodes_to_the_models_own_prediction(name: str) -> None:
    """Scales, softcaps and biases of the head included."""
    model = EVERY[name](torch.float64)
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))
    y = network.jacobian(0).y
    (decoded,), _ = decode_left(network, (y / y.norm())[:, None], y, "output", top=20)
    expected = torch.softmax(network.streams.logits[0], dim=0).sort(descending=True)
    assert [entry.id for entry in decoded] == expected.indices[:20].tolist()
    assert [entry.score for entry in decoded] == pytest.approx(expected.values[:20].tolist(), rel=1e-5)


def test_logits_of_unit_vectors_have_the_models_scale() -> None:
    model = DENSE["Granite"](torch.float64)
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))
    y = network.jacobian(0).y
    (decoded,), _ = decode_left(network, (y / y.norm())[:, None], y, "output", top=20)
    logits = network.streams.logits[0] / y.norm()
    assert [entry.logit for entry in decoded] == pytest.approx([float(logits[entry.id]) for entry in decoded], rel=1e-6)


def test_a_softcap_that_saturates_keeps_the_order() -> None:
    model = DENSE["Gemma 3 softcapped"](torch.float32)
    model.get_output_embeddings().weight.data *= 100
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))
    y = network.jacobian(0).y
    (decoded,), _ = decode_left(network, y[:, None] / y.norm(), y, "output", top=10)
    logits = [entry.logit for entry in decoded]
    assert logits == sorted(logits, reverse=True)


@pytest.mark.parametrize(
    "words",
    [
        (Project("lm_head"), Softcap("config.final_logit_softcapping"), Scale("config.rms_norm_eps")),
        (Scale("config.rms_norm_eps"), Project("lm_head")),
        (Project("lm_head"), Project("lm_head")),
    ],
)
def test_a_head_that_is_not_understood_is_not_decoded(network: DetachedNetwork, words: Any) -> None:
    other = dataclasses.replace(network, family=dataclasses.replace(network.family, logits=words))
    with pytest.raises(UnsupportedModelError, match="a head, then scales, then a softcap"):
        head_of(other)


def a_little_more_of_every_other(logits: Tensor) -> Tensor:
    return logits + 2e-8 * logits * (torch.arange(logits.shape[-1]) % 2)


@pytest.mark.parametrize("change", [torch.tanh, a_little_more_of_every_other])
def test_logits_that_are_not_understood_are_not_decoded(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", ())
    model = DENSE["Cohere"](torch.float64)
    model.lm_head.forward = types.MethodType(lambda self, x: change(x @ self.weight.T), model.lm_head)
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(6))
    J = network.jacobian(0)
    with pytest.raises(UnsupportedModelError, match="no multiple of what its head gives"):
        decode_left(network, J.y[:, None] / J.y.norm(), J.y, "output")


def test_the_head_has_the_numbers_of_the_pass() -> None:
    model = DENSE["Cohere 2"](torch.float64)
    network, scale = detach((model, None), input_ids=[3, 1, 4]), model.logit_scale
    model.logit_scale = 3.0
    assert head_of(network).scale == scale


def test_a_scale_is_fitted_to_all_rows_of_the_head_and_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is read some rows at a time, each with its part of the bias."""
    monkeypatch.setattr(head, "_ROWS", 16)
    monkeypatch.setattr(families, "FAMILIES", ())
    model = DENSE["Cohere"](torch.float64)
    model.lm_head.bias = torch.nn.Parameter(3 * torch.randn(tiny_models.VOCABULARY, dtype=torch.float64))
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(4, 6))
    assert network.route == "autograd"
    assert head_of(network).scale == pytest.approx(model.logit_scale, rel=1e-9)


@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_left_vectors_in_the_stream_pass_the_final_norm_first(make: str) -> None:
    network = detach(
        tiny_models.loaded(getattr(tiny_models, make)()), input_ids=tiny_models.prompt_ids(tiny_models.LENGTH)
    )
    weight = network.model.model.norm.weight.detach() + (1 if make == "gemma" else 0)
    for target in ("residual", layer(1)):
        U, _, y = triplets_of(network, target=target)
        decoded, signs = decode_left(network, U, y, target, top=5)
        seen = torch.nn.functional.normalize(weight[:, None] * U * signs, dim=0)
        logits = network.model.get_output_embeddings().weight.detach() @ seen
        shares = torch.softmax(network.streams.output[-1].norm() * logits, dim=0)
        for j, entries in enumerate(decoded):
            assert [entry.id for entry in entries] == logits[:, j].topk(5).indices.tolist()
            assert entries[0].logit == pytest.approx(float(logits[:, j].max()), rel=1e-6)
            assert entries[0].score == pytest.approx(float(shares[:, j].max()), rel=1e-6)


def test_the_bias_of_a_final_norm_is_no_part_of_what_a_vector_says() -> None:
    network = detach(tiny_models.loaded(EVERY["StableLM"](torch.float64)), input_ids=tiny_models.prompt_ids(6))
    norm, table = network.model.model.norm, network.model.get_output_embeddings().weight.detach()
    assert float(norm.bias.detach().norm()) > 0.01
    U, _, y = triplets_of(network, target="residual")
    decoded, signs = decode_left(network, U, y, "residual", top=5)
    seen = torch.nn.functional.normalize(norm.weight.detach()[:, None] * (U - U.mean(dim=0)) * signs, dim=0)
    for j, entries in enumerate(decoded):
        best = (table @ seen[:, j]).topk(5)
        assert [entry.id for entry in entries] == best.indices.tolist()
        assert [entry.logit for entry in entries] == pytest.approx(best.values.tolist(), rel=1e-6)


def test_vectors_of_any_prompt_and_position_are_weighed_by_the_length_of_the_output_there() -> None:
    network = detach(tiny_models.loaded(tiny_models.llama()), input_ids=tiny_models.prompt_ids(4, 6, 5))
    weight, table = (part.weight.detach() for part in (network.model.model.norm, network.model.get_output_embeddings()))
    for prompt, position in ((0, 3), (1, 0), (1, 2), (2, 4)):
        J = network.jacobian((prompt, 0), target="residual", position=position)
        row = network.start_of(prompt) + position
        (decoded,), _ = decode_left(network, J.y[:, None] / J.y.norm(), J.y, "residual", top=3, row=row)
        seen = torch.nn.functional.normalize(weight * J.y, dim=0)
        shares = torch.softmax(network.streams.output[row].norm() * (table @ seen), dim=0)
        assert [entry.score for entry in decoded] == pytest.approx(shares.topk(3).values.tolist(), rel=1e-6)


def test_the_prompt_of_a_row_is_found_without_counting_the_others_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of P prompts each would be counted P² times otherwise."""
    network = detach((DENSE["Llama"](torch.float64), None), input_ids=[[3, 7], [5], [4, 9, 11], [2], [8, 6]])
    counted, length = [], Prompt.length
    monkeypatch.setattr(Prompt, "length", property(lambda prompt: counted.append(prompt) or length.fget(prompt)))
    rows = [(prompt, position) for prompt, n in enumerate(network.lengths) for position in range(n)]
    for row, (prompt, position) in enumerate(rows):
        found = decode._output_at(network, row)
        assert torch.equal(found, network.value(Place("output"), prompt, position))
        assert network.start_of(prompt) + position == row
    assert len(counted) <= len(network.prompts)


def test_the_length_of_an_altered_networks_output_is_its_own(network: DetachedNetwork) -> None:
    altered = network.replace(drop=mlp(0))
    U, _, y = triplets_of(altered, target="residual")
    (decoded, *_), signs = decode_left(altered, U, y, "residual", top=5)
    own = altered.jacobian(0).y.norm()
    assert abs(own / network.streams.output[-1].norm() - 1) > 0.01
    seen = torch.nn.functional.normalize(network.model.model.norm.weight.detach() * U[:, 0] * signs[0], dim=0)
    shares = torch.softmax(own * (network.model.get_output_embeddings().weight.detach() @ seen), dim=0)
    assert decoded[0].score == pytest.approx(float(shares.max()), rel=1e-6)


def test_vectors_at_the_logits_are_their_own_logits(network: DetachedNetwork) -> None:
    U, _, y = triplets_of(network, target="logits")
    decoded, signs = decode_left(network, U, y, "logits", top=5)
    expected = (U * signs).topk(5, dim=0)
    shares = torch.softmax(y.norm() * U * signs, dim=0).gather(0, expected.indices)
    assert [[entry.id for entry in entries] for entries in decoded] == expected.indices.T.tolist()
    for j, entries in enumerate(decoded):
        assert [entry.score for entry in entries] == pytest.approx(shares[:, j].tolist(), rel=1e-9)
    everything, _ = decode_left(network, U, y, "logits", top=tiny_models.VOCABULARY)
    assert all(sum(entry.score for entry in entries) == pytest.approx(1, rel=1e-12) for entries in everything)


def test_vectors_of_half_precision_are_decoded_as_what_they_are(network: DetachedNetwork) -> None:
    """Logits, shares and lengths are not rounded to their type."""
    for target in ("output", "logits"):
        U, _, y = (part.bfloat16() for part in triplets_of(network, target=target))
        half, _ = decode_left(network, U, y, target, top=3)
        plain, _ = decode_left(network, U.double(), y.double(), target, top=3)
        for ours, theirs in zip(half, plain, strict=True):
            assert [entry.score for entry in ours] == pytest.approx([entry.score for entry in theirs], rel=1e-5)
            assert [entry.logit for entry in ours] == pytest.approx([entry.logit for entry in theirs], rel=1e-5)


def test_vectors_at_a_probe_are_read_row_by_row(network: DetachedNetwork) -> None:
    rows = torch.randn(6, network.hidden_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, _, y = triplets_of(network, target=probe(rows))
    decoded, signs = decode_left(network, U, y, probe(rows))
    for j, entries in enumerate(decoded):
        assert sum(entry.score for entry in entries) == pytest.approx(1, rel=1e-12)
        assert entries[0].token == f"row {int(U[:, j].abs().argmax())}"
        assert entries[0].score == pytest.approx(float(U[:, j].abs().max() ** 2), rel=1e-12)
        assert entries[0].logit == pytest.approx(float((U * signs)[entries[0].id, j]), rel=1e-12)


def test_an_input_embedding_decodes_to_its_own_token(network: DetachedNetwork) -> None:
    table = network.model.get_input_embeddings().weight.detach()
    ids = [3, 11, 29]
    decoded = decode_right(network, 5 * table[ids].T * torch.tensor([1.0, 1.0, -1.0], dtype=table.dtype))
    assert [entries[0].id for entries in decoded[:2]] == ids[:2]
    assert decoded[0][0].score == pytest.approx(1, rel=1e-12)
    cosines = torch.nn.functional.cosine_similarity(-table[29], table)
    assert [entry.id for entry in decoded[2]] == cosines.topk(10).indices.tolist()
    assert decoded[0][0].token == "<3>"


def test_embeddings_are_projected_where_the_stream_is_wider() -> None:
    """Right vectors at the embeddings are as wide as these, and meet them as they are."""
    network = detach(tiny_models.loaded(DENSE["OPT post-norm"](torch.float64)), input_ids=tiny_models.prompt_ids(6))
    table = network.model.get_input_embeddings().weight.detach()
    projected = table @ network.model.model.decoder.project_in.weight.detach().T
    for source, rows in (("embeddings", table), (layer(1), projected)):
        J = network.jacobian(2, source=source)
        V = torch.linalg.svd(J.dense(), full_matrices=False)[2][:3].T
        for v, entries in zip(V.T, decode_right(network, V), strict=True):
            cosines = torch.nn.functional.cosine_similarity(v, rows).topk(10)
            assert [entry.id for entry in entries] == cosines.indices.tolist()
            assert [entry.score for entry in entries] == pytest.approx(cosines.values.tolist(), rel=1e-9)
    with pytest.raises(InputError, match=r"takes V \(16 or 24, k\)"):
        decode_right(network, torch.ones(20, 2))


def test_bad_shapes_are_refused_in_one_line(network: DetachedNetwork) -> None:
    with pytest.raises(InputError, match="decode_left takes"):
        decode_left(network, torch.ones(5, 2), torch.ones(4), "output")
    with pytest.raises(InputError, match=r"got \(5, 1\) and"):
        decode_left(network, torch.ones(5, 1), torch.ones(network.hidden_size), "output")
    for target in ("output", "residual", "logits", layer(1), probe(torch.ones(3, network.hidden_size))):
        with pytest.raises(InputError, match=r"d_out = \d+ at [^\n]*; got \(5, 1\) and \(5,\)$"):
            decode_left(network, torch.ones(5, 1), torch.ones(5), target)
    with pytest.raises(InputError, match="token by token"):
        decode_right(network, torch.ones(2 * network.hidden_size, 2))
    with pytest.raises(InputError, match=r"decode_right takes V \(\d+, k\); got \(\d+,\);"):
        decode_right(network, torch.ones(network.hidden_size))


def test_a_row_that_does_not_exist_is_refused_in_one_line(network: DetachedNetwork) -> None:
    U, _, y = triplets_of(network, target="residual")
    rows = len(network.streams.output)
    last, _ = decode_left(network, U, y, "residual", row=rows - 1)
    assert decode_left(network, U, y, "residual", row=torch.tensor(-1))[0] == last  # type: ignore[arg-type]
    wrong: Any
    for wrong in (rows, -rows - 1, 99, 1.0, True, "a", None):
        with pytest.raises(InputError, match=rf"row {wrong!r} does not exist; .* rows 0\.\.{rows - 1} in all$"):
            decode_left(network, U, y, "residual", row=wrong)


@pytest.mark.parametrize("top", [-1, 1.5, True, None, torch.ones(3)])
def test_a_number_of_tokens_that_is_none_is_refused_in_one_line(network: DetachedNetwork, top: Any) -> None:
    for target in ("output", "logits"):
        U, V, y = triplets_of(network, target=target)
        with pytest.raises(InputError, match=r"decode_left takes top, .* got [^\n]*$"):
            decode_left(network, U, y, target, top)
        with pytest.raises(InputError, match=r"decode_right takes top, .* got [^\n]*$"):
            decode_right(network, V, top)


def test_vectors_that_are_no_tensors_are_refused_in_one_line(network: DetachedNetwork) -> None:
    U, V, y = triplets_of(network)
    for vectors, value, name in ((U.numpy(), y, "U"), (U, y.numpy(), "y")):
        with pytest.raises(InputError, match=f"decode_left takes {name} as a tensor; got ndarray"):
            decode_left(network, vectors, value, "output")
    with pytest.raises(InputError, match="decode_right takes V as a tensor; got ndarray"):
        decode_right(network, V.numpy())
    with pytest.raises(InputError, match="decode_right takes V as a tensor; got list"):
        decode_right(network, V.tolist())


def test_a_target_that_does_not_exist_is_refused_as_by_the_jacobian(network: DetachedNetwork) -> None:
    """The text "layer(1)" was once read as vectors at the output."""
    U, _, y = triplets_of(network, target=layer(1))
    for target, message in (("layer(1)", "import the function"), ("stream", "target must be"), (layer(9), "not exist")):
        with pytest.raises(InputError, match=message):
            network.jacobian(2, target=target)
        with pytest.raises(InputError, match=message):
            decode_left(network, U, y, target)


def test_smollm2_says_only_and_most_after_the_bridge(smollm2: LoadedModel) -> None:
    network = detach(smollm2, "The bridge out of Marin is the")
    J = network.jacobian(0)
    generator = torch.Generator().manual_seed(0)
    V = torch.linalg.qr(torch.randn(J.shape[1], 2, generator=generator))[0]
    for _ in range(3):
        V = torch.linalg.qr(J.rmatmat(J.matmat(V)))[0]
    U, S, _ = torch.linalg.svd(J.matmat(V), full_matrices=False)
    assert float(S[0]) == pytest.approx(63.93, abs=0.01)
    decoded, _ = decode_left(network, U[:, :1], J.y, "output")
    assert {" most", " only"} <= {entry.token for entry in decoded[0][:4]}


@pytest.mark.parametrize("name", ["Llama", "OPT post-norm", "StableLM"])
def test_an_ambient_autocast_changes_nothing(name: str) -> None:
    network = detach(tiny_models.loaded(EVERY[name](torch.float32)), input_ids=tiny_models.prompt_ids(6))
    U, V, y = triplets_of(network, source=layer(1))
    left, _ = decode_left(network, U, y, "output")
    right = decode_right(network, V)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decode_left(network, U, y, "output")[0] == left
        assert decode_right(network, V) == right

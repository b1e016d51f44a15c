"""A run states true things about the Jacobians of its model."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detjac_kernels import roads
from detjac_lanczos import detach, layer, probe
from detjac_lanczos.errors import InputError
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.runs import Run, analyze, load_run, verify
from tests.tiny_llama import PROMPT

K = 4


def test_values_are_those_of_the_dense_jacobian(tiny: LoadedModel, run: Run) -> None:
    network = detach(tiny, PROMPT)
    for token in run.tokens:
        exact = torch.linalg.svdvals(network.jacobian(token.index).dense().double())[:K]
        assert torch.allclose(token.S.double(), exact, rtol=1e-3, atol=0)
        assert token.status == "converged"
        assert token.certificate is not None
        assert token.certificate.claimed == K
        assert torch.dist(torch.tensor(token.singular_values), token.S) == 0


def test_left_vectors_point_along_the_output(run: Run) -> None:
    y = run.vectors["y.0"]
    for token in run.tokens:
        assert (token.U.T @ y > 0).all()


def test_stable_rank_interval_holds_the_true_one(tiny: LoadedModel, run: Run) -> None:
    network = detach(tiny, PROMPT)
    for token in run.tokens:
        J = network.jacobian(token.index).dense().double()
        low, high = token.record["stable_rank_interval"]
        assert low <= (J.norm() / token.S[0].double()) ** 2 <= high
        assert low <= token.stable_rank <= high


def test_contributions_add_up_to_the_output(tiny: LoadedModel, run: Run) -> None:
    y = run.vectors["y.0"].double()
    total = sum(
        token.contribution["share"] * token.contribution["cosine"] * y.norm()
        for token in run.tokens
        if token.contribution
    )
    assert float(total) == pytest.approx(float(y.norm()), rel=1e-5)
    assert run.reconstruction.relative_error < 1e-6
    assert torch.dist(run.reconstruction.estimate, y.float()) < 1e-6 * y.norm()


def test_record_is_plain_json_of_so_many_triplets(run: Run) -> None:
    record = json.loads(json.dumps(run.record, allow_nan=False))
    assert record == run.record
    for token in record["tokens"]:
        assert token["certificate"]["line"].startswith(f"TRIPLETS {K}/{K}")
        assert [len(side) for side in (token["left"], token["right"], token["residuals"])] == [K, K, K]
    assert set(record["times"]) == {"load", "capture", "solve", "read", "total"}


def test_work_counts_columns_times_rows(run: Run) -> None:
    n, d = len(run.record["token_ids"][0]), 64
    blocks = 3
    row = (blocks - 1) / blocks
    assert run.work["dense_row_sweeps"] == pytest.approx((n * row + 1 / blocks) * d)
    per_token = [token.record["work"] for token in run.tokens]
    assert run.work["columns"] == sum(w["products_forward"] + w["products_transposed"] for w in per_token)
    assert run.work["row_sweeps"] == pytest.approx(sum(w["row_sweeps"] for w in per_token))


def test_two_prompts_give_the_values_that_each_gives_alone(tiny: LoadedModel, run: Run) -> None:
    both = analyze(tiny, [PROMPT, "most of the bridge"], k=K)
    alone = analyze(tiny, "most of the bridge", k=K)
    assert [(token.prompt, token.index) for token in both.tokens] == [(0, i) for i in range(6)] + [
        (1, i) for i in range(4)
    ]
    torch.testing.assert_close(both.spectrum(), torch.cat([run.spectrum(), alone.spectrum()]), rtol=1e-3, atol=1e-5)
    assert both.predictions[1][0].id == alone.prediction[0].id
    assert len(both.reconstructions) == 2
    assert both.reconstructions[1].relative_error < 1e-6


@pytest.mark.parametrize("position", [-1, 2])
def test_left_vectors_in_the_stream_decode_as_the_prompt_alone_does(tiny: LoadedModel, position: int) -> None:
    options: dict[str, Any] = {"k": 2, "target": "residual", "position": position, "method": "dense"}
    both = analyze(tiny, [PROMPT, "most of the bridge"], **options)
    alone = analyze(tiny, PROMPT, **options)
    for one, other in zip(both.tokens, alone.tokens, strict=False):
        for left, expected in zip(one.left, other.left, strict=True):
            assert [word for word, _ in left.decoded] == [word for word, _ in expected.decoded]
            assert [score for _, score in left.decoded] == pytest.approx([s for _, s in expected.decoded], rel=1e-3)


@pytest.mark.parametrize("method", ["auto", "shared_basis"])
def test_a_probe_of_few_rows_has_as_many_triplets_by_default(tiny: LoadedModel, method: str) -> None:
    rows = torch.eye(3, 64)
    few = analyze(tiny, PROMPT, target=probe(rows), tokens=[0, 3], method=method)
    assert few.spectrum().shape == (2, 3) and few.record["options"]["k"] == 3
    with pytest.raises(InputError, match="k = 4 cannot be found: give a whole number from 1 to 3"):
        analyze(tiny, PROMPT, 4, target=probe(rows), tokens=[0, 3], method=method)


def test_chosen_tokens_are_the_ones_in_the_run(tiny: LoadedModel, run: Run) -> None:
    part = analyze(tiny, PROMPT, k=K, tokens=[5, 2])
    assert [token.index for token in part.tokens] == [5, 2]
    assert [token.token for token in part.tokens] == ["is", "out"]
    torch.testing.assert_close(part.spectrum(), run.spectrum()[[5, 2]], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "lanczos", "randomized", "dense"])
def test_same_seed_and_choices_repeat_the_run_bit_for_bit(tiny: LoadedModel, method: str) -> None:
    first = analyze(tiny, PROMPT, k=K, method=method)
    again = analyze(tiny, PROMPT, k=K, method=method, choices=first.record["choices"])
    assert again.work["method"] == first.work["method"]
    assert again.vectors.keys() == first.vectors.keys()
    assert all(torch.equal(again.vectors[name], value) for name, value in first.vectors.items())


def test_recorded_kernels_serve_the_capture_as_well_as_the_sweeps(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process nothing is timed again, neither by the same call nor to verify its run."""
    monkeypatch.setattr(roads, "_LEAST", 1)
    first = analyze(tiny, PROMPT, k=K, method="lanczos")
    verified = verify(first, tiny)
    recorded = {**first.record["choices"], "gemm": roads.choices()}
    assert any("few" in shape for shape in recorded["gemm"])
    monkeypatch.setattr(roads, "_measure", lambda *_: pytest.fail("a shape class is timed again"))
    for repeat in (
        lambda: analyze(tiny, PROMPT, k=K, method="lanczos", choices=recorded),
        lambda: verify(replace(first, record={**first.record, "choices": recorded}), tiny),
    ):
        monkeypatch.setattr(roads, "_table", {})
        repeat()
    assert verified.ok


def test_recorded_kernels_are_in_force_no_longer_than_they_are_asked_for(tiny: LoadedModel) -> None:
    run = analyze(tiny, PROMPT, k=K, tokens=[1])
    made = roads.choices()
    turned = {shape: "onednn" if road == "default" else "default" for shape, road in made.items()}
    foreign = copy.deepcopy(run.record["choices"]) | {"gemm": turned | {"f32 xWt 3x5->7": "default"}}
    again = analyze(tiny, PROMPT, k=K, tokens=[1], choices=foreign)
    assert again.record["choices"]["gemm"]["f32 xWt 3x5->7"] == "default"
    assert verify(again, tiny).ok
    later = roads.choices()
    assert made.items() <= later.items() and "f32 xWt 3x5->7" not in later


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"solver": 3},
        "auto",
        [],
        *({"solver": {}, "gemm": table} for table in ("abc", [1], {"f32 xWt 8x576->576": ["a"]}, {3: "onednn"})),
        {"solver": {}, "packed": {"H100, xWt": None}},
    ],
    ids=str,
)
def test_choices_that_no_run_recorded_are_refused(tiny: LoadedModel, choices: Any) -> None:
    with pytest.raises(InputError, match="choices are those of an earlier run"):
        analyze(tiny, PROMPT, k=K, choices=choices)


def test_weights_that_cannot_be_differentiated_leave_the_contrast_out(tiny: LoadedModel) -> None:
    with torch.inference_mode():
        model = copy.deepcopy(tiny.model)
    with pytest.warns(UserWarning, match="contrast with ordinary Jacobians is left out"):
        found = analyze((model, tiny.tokenizer), PROMPT, k=2, tokens=[0])
    assert found.record["reconstruction"]["ordinary_relative_error"] is None
    assert found.tokens[0].status == "converged"


@pytest.mark.parametrize("freeze", ["gate", "up", "half"])
@pytest.mark.parametrize("target", ["output", "residual", "logits", "layer(1)"])
def test_every_freeze_rule_and_target_runs_and_reconstructs(tiny: LoadedModel, freeze: str, target: str) -> None:
    place = layer(1) if target == "layer(1)" else target
    found = analyze(tiny, PROMPT, k=2, tokens=[1], freeze=freeze, target=place)  # type: ignore[arg-type]
    assert found.record["definition"]["target"] == target
    assert found.reconstruction.relative_error < 2e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "the " * 33}, "context is 32"),
        ({"k": 0}, "k = 0"),
        ({"k": 65}, "1 to 64"),
        ({"k": True}, "k = True"),
        ({"tokens": [6]}, "token 6 does not exist"),
        ({"tokens": [1, 1]}, "twice"),
        ({"tokens": []}, "no tokens"),
        ({"tokens": ["joint"]}, "joint"),
        ({"tokens": "joint"}, "joint"),
        ({"tokens": "0"}, "'0' selects no token"),
        ({"tokens": True}, "True selects no token"),
        ({"tokens": [True]}, "True selects no token"),
        ({"tokens": [(0, 1, 2)]}, "selects no token"),
        ({"tokens": [(0, True)]}, "selects no token"),
        ({"tokens": [1.0]}, "1.0 selects no token"),
        ({"tokens": torch.tensor([0.5])}, "selects no token"),
        ({"position": 9}, "position 9 does not exist"),
        ({"position": True}, "position True is no index"),
        ({"position": 1.5}, "position 1.5 is no index"),
        ({"max_products": 3}, "max_products = 3"),
        ({"seed": 2**32}, "32 bits"),
        ({"block": 2.5}, "block = 2.5"),
        ({"callback": "print"}, "cannot be called"),
        ({"tol": 2.0}, "tol = 2.0"),
        ({"method": "magic"}, "unknown method"),
        ({"freeze": "none"}, "freeze"),
        ({"target": "nowhere"}, "target must be"),
        ({"source": layer(7)}, "layer 7 does not exist"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tiny: LoadedModel, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        analyze(tiny, **({"prompt": PROMPT} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tokens",
    [
        3,
        np.int64(3),
        torch.tensor(3),
        [np.int32(3)],
        torch.tensor([3]),
        np.array([3]),
        [(np.int64(0), torch.tensor(3))],
        (0, 3),
    ],
)
def test_integers_of_any_kind_choose_tokens(tiny: LoadedModel, tokens: Any) -> None:
    found = analyze(tiny, PROMPT, k=np.int64(2), tokens=tokens, position=np.int64(-1), seed=np.int32(1))  # type: ignore[arg-type]
    assert [token.index for token in found.tokens] == [3]
    assert json.loads(json.dumps(found.record)) == found.record


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"tol": 3},
        {"tokens": "x"},
        {"position": "last"},
        {"method": "magic"},
        {"method": "shared_basis", "polish": "all"},
        {"certify": "no"},
    ],
)
def test_bad_requests_are_refused_before_a_model_is_loaded(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        analyze("/no/such/model", PROMPT, **options)
    assert "/no/such/model" not in str(caught.value)


def test_a_budget_of_products_is_kept(tiny: LoadedModel) -> None:
    found = analyze(tiny, PROMPT, k=2, tokens=[1], max_products=8)
    assert found.work["columns"] <= 8
    assert found.tokens[0].status == "budget"
    assert found.record["options"]["max_products"] == 8


@pytest.mark.usefixtures("unpainted")
def test_embeddings_stand_for_token_ids(tiny: LoadedModel, run: Run, tmp_path: Path) -> None:
    embeds = tiny.model.get_input_embeddings().weight.detach()[run.record["token_ids"][0]]
    found = analyze(tiny, inputs_embeds=embeds, k=K, method="lanczos")
    torch.testing.assert_close(found.spectrum(), run.spectrum())
    assert [token.id for token in found.tokens] == [None] * len(embeds)
    found.save(tmp_path / "out")
    again = load_run(tmp_path / "out")
    assert verify(again, tiny).ok
    torch.testing.assert_close(again.vectors["embeds.0"], embeds)
    assert "inputs_embeds=[stored['embeds.0']]" in again.page().replace("&#x27;", "'")


@pytest.mark.usefixtures("unpainted")
def test_a_padded_batch_is_repeated_where_its_tokens_stood(tiny: LoadedModel, tmp_path: Path) -> None:
    rows, mask = [[0, 0, 1, 2, 3], [4, 5, 6, 7, 9]], [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    found = analyze(tiny, input_ids=rows, attention_mask=mask, k=2)
    assert found.record["token_ids"] == [[1, 2, 3], [4, 5, 6, 7, 9]]
    assert found.record["position_ids"] == [[2, 3, 4], [0, 1, 2, 3, 4]]
    assert verify(load_run(found.save(tmp_path / "out")), tiny).ok

"""Calls as people write them, with the types that their values have: `make lint` has mypy read them, and they run."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detjac_lanczos as dl
from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import Candidate, Jacobian, JacobianBatch, Place
from detjac_lanczos.operators.linear import MatrixFree
from detjac_lanczos.runs import Job, verify
from detjac_lanczos.solvers import Completeness, Guards, Progress
from detjac_lanczos.solvers.testing import OperatorTestCase
from tests.tiny_llama import PROMPT

IDS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def network(tiny: dl.LoadedModel) -> dl.DetachedNetwork:
    return dl.detach(tiny, PROMPT)


@pytest.mark.parametrize("kind", ["loaded", "module", "pair", "path", "text"])
def test_a_model_is_given_in_every_way_to_all_that_take_one(
    kind: str, tiny: dl.LoadedModel, tiny_folder: Path, run: dl.Run, tmp_path: Path
) -> None:
    module: nn.Module = tiny.model
    if kind == "loaded":
        dl.load_model(tiny), dl.detach(tiny, PROMPT), dl.analyze(tiny, PROMPT, k=1, tokens=0), verify(run, tiny)
        dl.analyze(dl.detach(tiny, PROMPT), k=1, tokens=0)
    elif kind == "module":
        dl.load_model(module), dl.detach(module, input_ids=IDS), dl.analyze(module, input_ids=IDS, k=1, tokens=0)
        verify(dl.analyze(module, input_ids=IDS, k=1, tokens=0), module)
    elif kind == "pair":
        pair = (module, tiny.tokenizer)
        dl.load_model(pair), dl.detach(pair, PROMPT), dl.analyze(pair, PROMPT, k=1, tokens=0), verify(run, pair)
    elif kind == "path":
        dl.load_model(tiny_folder), dl.detach(tiny_folder, PROMPT), verify(run, tiny_folder)
        dl.analyze(tiny_folder, PROMPT, k=1, tokens=0)
    else:
        name = str(tiny_folder)
        dl.load_model(name), dl.detach(name, PROMPT), dl.analyze(name, PROMPT, k=1, tokens=0), verify(run, name)


def test_prompts_are_tensors_arrays_and_lists(tiny: dl.LoadedModel) -> None:
    for ids in (IDS, [IDS], np.array(IDS), torch.tensor([IDS])):
        dl.detach(tiny, input_ids=ids, attention_mask=np.ones(4, int), position_ids=np.arange(4))
    embeds: Tensor = tiny.model.get_input_embeddings().weight[:4].detach()
    for given in (embeds, embeds.numpy(), [embeds]):
        dl.detach(tiny, inputs_embeds=given, attention_mask=[1, 1, 1, 1], position_ids=[[0, 1, 2, 3]])


def test_budgets_are_numbers_and_texts(tiny: dl.LoadedModel, network: dl.DetachedNetwork) -> None:
    for memory in (2 * 10**9, 2e9, "2GiB", None):
        dl.detach(tiny, PROMPT, memory=memory)
        dl.analyze(tiny, PROMPT, k=1, tokens=0, memory=memory)
        dl.svd(network.jacobian(0), 1, method="lanczos", memory=memory)


def test_tokens_are_asked_for_by_any_whole_number(network: dl.DetachedNetwork) -> None:
    for index in (0, np.int64(0), torch.tensor(0)):
        assert_type(network.jacobian(index), Jacobian)
        assert_type(network.jacobian((0, index)), Jacobian)
        network.jacobians(index)
    assert_type(network.jacobian("joint"), Jacobian)
    assert_type(network.jacobian((0, "joint")), Jacobian)
    indices: list[int] = [0, 1]
    pairs: list[tuple[int, int]] = [(0, 0), (0, 1)]
    assert_type(network.jacobian(indices), JacobianBatch)
    assert_type(network.jacobian(pairs), JacobianBatch)
    assert_type(network.jacobian([0, (0, 1)]), JacobianBatch)
    assert_type(network.jacobian(slice(2)), JacobianBatch)
    for tokens in (indices, pairs, range(2), np.arange(2), {0, 1}):
        assert_type(network.jacobians(tokens), JacobianBatch)


def test_the_transpose_of_a_transpose_has_a_type(network: dl.DetachedNetwork) -> None:
    J = network.jacobian(0)
    assert assert_type(J.T.T, MatrixFree) is J


def test_what_results_are_made_of_has_a_public_name(network: dl.DetachedNetwork, tiny_folder: Path) -> None:
    assert_type(dl.layer(1), Place)
    assert_type(network.prediction, list[Candidate])
    assert_type(dl.plan(tiny_folder, 10, device="h100").joint, Job)
    result = dl.svd(network.jacobian(0), 1, method="lanczos", certify="complete")
    assert result.certificate is not None
    assert_type(result.certificate.completeness, Completeness | None)
    assert_type(result.guards, Guards | None)


def test_a_callback_may_return_anything(network: dl.DetachedNetwork, run: dl.Run, tiny: dl.LoadedModel) -> None:
    def told(progress: Progress) -> bool:
        return progress.passes > 1

    steps: dict[str, int] = {}
    dl.svd(network.jacobian(0), 1, callback=told)
    dl.analyze(tiny, PROMPT, k=1, tokens=0, callback=told)
    verify(run, tiny, device=torch.device("cpu"), callback=lambda what, step, count: steps.setdefault(what, step))
    assert steps


class TestFourWidths(OperatorTestCase):
    widths = (1, 2, 3, 4)

    def create_operator(self) -> Tensor:
        return torch.eye(5)

    def create_dense(self) -> Tensor:
        return torch.eye(5)


def test_a_word_that_is_no_choice_is_caught(tiny: dl.LoadedModel, tiny_folder: Path) -> None:
    """Each is an error to mypy, which complains of an ignored line that is none."""
    A = torch.eye(4)
    calls: list[Any] = [
        lambda: dl.svd(A, 1, method="lancsoz"),  # type: ignore[arg-type]
        lambda: dl.svd_batch([A], 1, certify="triplet"),  # type: ignore[arg-type]
        lambda: dl.analyze(tiny, PROMPT, method="survey"),  # type: ignore[arg-type]
        lambda: dl.analyze(tiny, PROMPT, method="shared_basis", polish="all"),  # type: ignore[arg-type]
        lambda: dl.load_model(tiny_folder, quantization="nf5"),  # type: ignore[arg-type]
        lambda: dl.plan(tiny_folder, 10, device="h300"),  # type: ignore[arg-type]
        lambda: dl.plan(tiny_folder, 10, quantization="nf5"),  # type: ignore[arg-type]
        lambda: dl.detach(3, PROMPT),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()

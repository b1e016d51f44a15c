"""The parts of the main job, each timed alone by pytest-benchmark: ``python -m pytest bench/parts.py``.

SmolLM2, every token of the standard prompt. What is timed is first compared with something that shares no code with it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import detjac_lanczos as dl
from bench.floor import Floor
from bench.real_jacobians import PROMPT, jacobians
from detjac_lanczos.frozen.layout import Layout
from detjac_lanczos.frozen.places import target_place
from detjac_lanczos.operators import DetachedNetwork
from detjac_lanczos.reading import decode_left, decode_right
from tests.oracles import OracleA, embeddings_of

K = 8


@pytest.fixture(scope="module")
def network() -> DetachedNetwork:
    return dl.detach(dl.load_model("smollm2"), PROMPT)


@pytest.fixture(scope="module")
def triplets() -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vt = torch.linalg.svd(jacobians("smollm2")[0].double(), full_matrices=False)
    return U[:, :K].float(), S[:K], Vt[:K].T.float()


@pytest.fixture(scope="module")
def block() -> Tensor:
    return torch.randn(576, K, generator=torch.Generator().manual_seed(0))


@pytest.mark.benchmark(group="detach: two passes and what is frozen")
def test_detach(benchmark: Any, network: DetachedNetwork) -> None:
    with torch.no_grad():
        logits = network.model(torch.tensor([network.prompts[0].ids])).logits[:, -1]
    assert torch.allclose(network.streams.logits, logits, rtol=1e-4, atol=1e-4)
    benchmark(dl.detach, network.loaded, PROMPT)


@pytest.mark.benchmark(group="a sweep of 8 columns of every token")
def test_transposed_sweep(benchmark: Any, network: DetachedNetwork, block: Tensor) -> None:
    batch, ids = network.jacobians(), list(network.prompts[0].ids)
    rows = [(token, block) for token in range(len(batch))]
    reverse = OracleA(network.model, embeddings_of(network.model, ids)).jacobian(0, "output", len(ids) - 1, block.T)
    for found, expected in zip(batch.rmatmat(rows), reverse.unbind(1), strict=True):
        assert (found.T - expected).norm() <= 2e-6 * expected.norm()
    benchmark(batch.rmatmat, rows)


@pytest.mark.benchmark(group="a sweep of 8 columns of every token")
def test_forward_sweep(benchmark: Any, network: DetachedNetwork, block: Tensor) -> None:
    batch = network.jacobians()
    rows = [(token, block) for token in range(len(batch))]
    for found, back in zip(batch.matmat(rows), batch.rmatmat(rows), strict=True):
        gap = found.double().T @ block.double() - block.double().T @ back.double()
        assert gap.abs().max() <= 1e-5 * found.norm() * block.norm()
    benchmark(batch.matmat, rows)


@pytest.mark.benchmark(group="a sweep of 8 columns of every token")
@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
def test_its_gemms_alone(benchmark: Any, network: DetachedNetwork, transposed: bool) -> None:
    segments = [replace(operator.segment, width=K) for operator in network.jacobians().operators]
    program = network.program(-1, target_place("output", network.blocks))
    benchmark(Floor(program, Layout(segments, network.lengths, network.device), transposed=transposed))


@pytest.mark.benchmark(group="the solver on stored Jacobians")
@pytest.mark.parametrize("method", ["lanczos", "randomized", "dense"])
def test_solve(benchmark: Any, method: str) -> None:
    matrices = list(jacobians("smollm2"))
    for found, matrix in zip(dl.svd_batch(matrices, k=K, method=method), matrices, strict=True):
        assert np.allclose(found.S, np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:K], rtol=1e-3)
    benchmark(dl.svd_batch, matrices, k=K, method=method)


@pytest.mark.benchmark(group="reading the vectors of a token")
def test_decode_left(benchmark: Any, network: DetachedNetwork, triplets: tuple[Tensor, ...]) -> None:
    U, y = triplets[0], network.streams.output[-1]
    signs = torch.sign(U.T @ y)
    best = (network.model.lm_head.weight @ (U * signs)).argmax(0)
    assert [token[0].id for token in decode_left(network, U, y, "output")[0]] == best.tolist()
    benchmark(decode_left, network, U, y, "output")


@pytest.mark.benchmark(group="reading the vectors of a token")
def test_decode_right(benchmark: Any, network: DetachedNetwork, triplets: tuple[Tensor, ...]) -> None:
    V = triplets[2]
    table = torch.nn.functional.normalize(network.model.get_input_embeddings().weight.detach(), dim=1)
    assert [token[0].id for token in decode_right(network, V)] == (table @ V).argmax(0).tolist()
    benchmark(decode_right, network, V)

"""J against reverse mode through detached modules (oracle A) and against pinned modules run again (oracle B)."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos.operators import DetachedNetwork, attention, detach, layer, mlp, probe
from tests import tiny_models
from tests.oracles import OracleA, OracleB, embeddings_of, errors

pytestmark = pytest.mark.usefixtures("one_thread")

BAR = {torch.float64: 1e-11, torch.float32: 2e-6}
LENGTHS = (tiny_models.LENGTH, 7, 1)
CASES = [
    ("llama", False, "gate"),
    ("llama", False, "up"),
    ("llama", True, "half"),
    ("gemma", True, "gate"),
    ("gemma", True, "up"),
    ("gemma", False, "half"),
]
"""Biases lie beside the linear maps, whatever is frozen; `test_families` crosses them for these models too."""


def probe_rows(dtype: torch.dtype) -> Tensor:
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


def targets(blocks: int, rows: Tensor) -> Iterator[tuple[str, Any, int]]:
    """Name of the stream in the oracle, the library's place, and the first source that lies behind it."""
    yield "output", "output", blocks
    yield "residual", "residual", blocks
    yield "logits", "logits", blocks
    yield "probe", probe(rows), blocks
    for index in range(blocks):
        yield f"layer.{index}", layer(index), index + 1
        yield f"attention.{index}", attention(index), index + 1
        yield f"mlp.{index}", mlp(index), index + 1


@cache
def case(make: str, bias: bool, freeze: Any, dtype: torch.dtype) -> tuple[Any, list[list[int]], DetachedNetwork]:
    model = getattr(tiny_models, make)(dtype, bias=bias)
    ids = tiny_models.prompt_ids(*LENGTHS)
    networks = detach(tiny_models.loaded(model), input_ids=ids, freeze=freeze)
    return model, ids, networks


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Cases do not outlive the file: all that lives is walked through whenever garbage is collected."""
    yield
    case.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("make", "bias", "freeze"), CASES)
def test_every_token_source_target_and_position_agree_with_reverse_mode(
    make: str, bias: bool, freeze: str, dtype: torch.dtype
) -> None:
    model, ids, network = case(make, bias, freeze, dtype)
    rows = probe_rows(dtype)
    for prompt, tokens in enumerate(ids):
        oracle = OracleA(model, embeddings_of(model, tokens), freeze)
        positions = {len(tokens) - 1} if dtype is torch.float32 else {len(tokens) - 1, len(tokens) // 2, 0}
        for position in sorted(positions):
            for name, place, behind in targets(network.blocks, rows):
                for source, expected in enumerate(jacobians(oracle, behind, name, position, rows)):
                    batch = network.jacobians(
                        [(prompt, i) for i in range(position + 1)],
                        source=layer(source),
                        target=place,
                        position=position,
                    )
                    eye = torch.eye(batch.shapes[0][0], dtype=dtype)
                    products = batch.rmatmat([(i, eye) for i in range(position + 1)])
                    assert torch.all(expected[:, position + 1 :] == 0)
                    for token, transposed in enumerate(products):
                        if expected[:, token].norm() == 0:
                            # A branch behind a window that has closed: nothing of this token reaches it.
                            assert torch.all(transposed == 0)
                        else:
                            assert max(errors(transposed.T, expected[:, token])) <= BAR[dtype], (name, source, token)


def jacobians(oracle: OracleA, behind: int, name: str, position: int, rows: Tensor) -> list[Tensor]:
    """The oracle's J of a target by each of the first sources."""
    if name == "probe":
        return oracle.jacobians(range(behind), "output", position, rows)
    return oracle.jacobians(range(behind), name, position)


@pytest.mark.parametrize(("make", "bias", "freeze"), CASES)
def test_forward_products_agree_with_reverse_mode(make: str, bias: bool, freeze: str) -> None:
    model, ids, network = case(make, bias, freeze, torch.float64)
    rows = probe_rows(torch.float64)
    oracle = OracleA(model, embeddings_of(model, ids[0]), freeze)
    for name, place, behind in targets(network.blocks, rows):
        for source, expected in enumerate(jacobians(oracle, behind, name, -1, rows)):
            operator = network.jacobian("joint", source=layer(source), target=place)
            found = operator.matmat(torch.eye(operator.shape[1], dtype=torch.float64))
            assert max(errors(found, expected.flatten(1))) <= BAR[torch.float64], (name, source)


@pytest.mark.parametrize(("make", "bias", "freeze"), CASES)
def test_the_pinned_model_is_affine_with_slope_j(make: str, bias: bool, freeze: str) -> None:
    """Of steps at one token, the short and the long ones are taken at the first and the last."""
    model, ids, network = case(make, bias, freeze, torch.float64)
    rows = probe_rows(torch.float64)
    for prompt, tokens in enumerate(ids):
        x = embeddings_of(model, tokens)
        oracle = OracleB(model, x, freeze)
        values = oracle.at_x | {"probe": oracle.at_x["output"] @ rows.T}
        for token in (None, *range(len(tokens))):
            delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(prompt), dtype=x.dtype)
            if token is not None:
                delta[torch.arange(len(tokens)) != token] = 0
            delta *= (x.norm() if token is None else x[token].norm()) / delta.norm()
            scales = (1e-3, 1.0, 1e3) if token in (None, 0, len(tokens) - 1) else (1.0,)
            moved = [oracle.change(scale * delta) for scale in scales]
            change = {name: torch.stack([one[name] for one in moved], dim=-1) for name in moved[0]}
            change["probe"] = rows @ change["output"]
            for position in {len(tokens) - 1, len(tokens) // 2}:
                for name, place, _ in targets(network.blocks, rows):
                    if token is not None and token > position:
                        assert torch.all(change[name][position] == 0)
                        continue
                    operator = network.jacobian(
                        (prompt, "joint" if token is None else token), target=place, position=position
                    )
                    step = delta[: position + 1].flatten() if token is None else delta[token]
                    found = operator.matmat(torch.stack([scale * step for scale in scales], dim=1))
                    # f(x + δ) − f(x) of a small δ keeps the rounding of f itself, ε‖f‖.
                    bars = 1e-11 * found.norm(dim=0) + 1e-14 * values[name][position].norm()
                    assert torch.all((found - change[name][position]).norm(dim=0) <= bars), (name, token, position)

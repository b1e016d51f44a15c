"""What a Jacobian of a frozen network satisfies: adjointness, chain rule, affine sum, batches, switched-off heads."""

import gc
import math
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.frozen import affine
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.maps import ColumnScale
from detjac_lanczos.frozen.sweep import forward, unpruned
from detjac_lanczos.operators import DetachedNetwork, JacobianBatch, attention, detach, expert, head, layer, mlp, probe
from detjac_lanczos.operators.blocks import check_block
from detjac_lanczos.operators.reconstruction import Reconstruction
from tests import tiny_models
from tests.oracles import OracleB, embeddings_of
from tests.threads import at_once
from tests.tiny_models import undeclared
from tests.tiny_models.dense import gemma2, gpt2, granite, opt
from tests.tiny_models.moe import gpt_oss, qwen3_moe

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (tiny_models.LENGTH, 5)
C = 10
"""The constant of |⟨Jv, u⟩ − ⟨v, Jᵀu⟩| ≤ C ε √rows ‖Jv‖ ‖u‖."""
RECONSTRUCTION = {torch.float64: 1e-13, torch.float32: 1e-6}


def network_of(
    make: str, dtype: torch.dtype = torch.float64, freeze: Any = "gate", bias: bool = True
) -> DetachedNetwork:
    model = getattr(tiny_models, make)(dtype, bias=bias)
    return detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(*LENGTHS), freeze=freeze)


@pytest.fixture(scope="module", params=["llama", "gemma"])
def network(request: pytest.FixtureRequest) -> DetachedNetwork:
    return network_of(request.param)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("freeze", ["gate", "up", "half"])
@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_transposed_products_are_adjoint(make: str, freeze: str, dtype: torch.dtype) -> None:
    network = network_of(make, dtype, freeze)
    for token in (0, 6, 11, "joint", (1, 2)):
        for target in ("output", "residual", "logits", layer(1), attention(2), mlp(0)):
            J = network.jacobian(token, target=target)
            v = normal(J.shape[1], 4, seed=1, dtype=dtype)
            u = normal(J.shape[0], 4, seed=2, dtype=dtype)
            forwards, backwards = J.matmat(v).double(), J.rmatmat(u).double()
            u, v = u.double(), v.double()
            gap = ((forwards * u).sum(0) - (v * backwards).sum(0)).abs()
            rows = J.segment.length
            bar = C * torch.finfo(dtype).eps * rows**0.5 * forwards.norm(dim=0) * u.norm(dim=0)
            assert torch.all(gap <= bar), (token, str(target), float((gap / bar).max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("make", "freeze", "bias"),
    [("llama", "gate", True), ("llama", "half", False), ("gemma", "up", True), ("gemma", "gate", False)],
)
def test_the_sum_over_tokens_and_the_offset_give_the_nonlinear_value(
    make: str, freeze: str, bias: bool, dtype: torch.dtype
) -> None:
    network = network_of(make, dtype, freeze, bias)
    rows = normal(3, 24, dtype=dtype)
    for prompt, n in enumerate(LENGTHS):
        for position in (n - 1, n // 2, 0):
            for source in (0, 2):
                for target in ("output", "residual", "logits", probe(rows), layer(2), attention(2), mlp(2)):
                    J = network.jacobian((prompt, 0), source=layer(source), target=target, position=position)
                    found = J.reconstruction
                    assert torch.equal(found.y, J.y)
                    tokens = [(prompt, token) for token in range(position + 1)]
                    ones = network.jacobians(tokens, source=layer(source), target=target, position=position)
                    products = ones.matmat([(token, one.x[:, None]) for token, one in enumerate(ones)])
                    parts = [J.offset.double(), *(product[:, 0].double() for product in products)]
                    # Terms much larger than their sum keep their own roundings: the bar is in their sizes.
                    size = sum(float(part.norm()) for part in parts)
                    y = J.y.double()
                    for estimate in (found.estimate.double(), torch.stack(parts).sum(0)):
                        assert (estimate - y).norm() <= RECONSTRUCTION[dtype] * size, (position, str(target))
                    if dtype is torch.float64 or target == "output":
                        assert found.norm_error <= RECONSTRUCTION[dtype], (position, source, str(target))
                    assert bias or not J.offset.any()


def test_the_working_precision_is_compared_with_the_models_own() -> None:
    """In float64 the pass is lifted; the model's own output keeps its roundings to float32 and is kept beside it."""
    network = network_of("llama")
    distance = (network.streams.output - network.streams.model_output).norm() / network.streams.output.norm()
    assert 1e-9 < distance < 1e-6


@pytest.mark.parametrize("between", [0, 1])
@pytest.mark.parametrize("target", ["output", layer(2), attention(2), mlp(2), "logits"], ids=str)
def test_chain_rule(network: DetachedNetwork, between: int, target: Any) -> None:
    """J(0 → end) of token i is the sum over positions t of J(after block l → end)_t J(0 → after block l)_ti."""
    for position in (11, 4):
        for token in (0, 3, position):
            whole = network.jacobian(token, target=target, position=position).dense()
            total = torch.zeros_like(whole)
            for t in range(token, position + 1):
                second = network.jacobian(t, source=layer(between + 1), target=target, position=position).dense()
                first = network.jacobian(token, target=layer(between), position=t).dense()
                total += second @ first
            assert (total - whole).norm() <= 1e-13 * whole.norm()


def test_a_target_is_a_function_of_the_output(network: DetachedNetwork) -> None:
    rows = normal(4, 24)
    output = network.jacobian("joint").dense()
    head_matrix = network.model.lm_head.weight.detach()
    for target, matrix in (("logits", head_matrix), (probe(rows), rows)):
        J = network.jacobian("joint", target=target)
        assert (J.dense() - matrix @ output).norm() <= 1e-13 * J.dense().norm()
        assert (J.y - matrix @ network.jacobian("joint").y).norm() <= 1e-13 * J.y.norm()


def test_a_block_is_its_input_and_its_branches(network: DetachedNetwork) -> None:
    for index in range(network.blocks):
        for token in (0, 11):
            stream = network.jacobian(token, source=layer(index), target=layer(index)).dense()
            first = network.jacobian(token, source=layer(index), target=attention(index)).dense()
            second = network.jacobian(token, source=layer(index), target=mlp(index)).dense()
            identity = torch.eye(24, dtype=torch.float64) * (token == 11)
            assert (stream - identity - first - second).norm() <= 1e-13 * stream.norm()


def test_dense_by_columns_and_by_rows_agree(network: DetachedNetwork) -> None:
    for J in (network.jacobian(3), network.jacobian("joint"), network.jacobian(3, target="logits")):
        by_columns = J.matmat(torch.eye(J.shape[1], dtype=J.dtype))
        by_rows = J.rmatmat(torch.eye(J.shape[0], dtype=J.dtype)).T
        assert (by_columns - by_rows).norm() <= 1e-13 * by_rows.norm()
        assert (J.dense() - by_rows).norm() <= 1e-13 * by_rows.norm()
        assert torch.equal(J.T.matmat(torch.eye(J.shape[0], dtype=J.dtype)), by_rows.T)
        assert J.T.T is J
        assert J.T.shape == J.shape[::-1]


def test_the_joint_operator_is_the_tokens_side_by_side(network: DetachedNetwork) -> None:
    for position in (11, 6):
        joint = network.jacobian("joint", position=position)
        side_by_side = torch.cat([network.jacobian(i, position=position).dense() for i in range(position + 1)], dim=1)
        assert joint.shape == side_by_side.shape
        assert (joint.dense() - side_by_side).norm() <= 1e-13 * side_by_side.norm()
        assert torch.equal(joint.x, torch.cat([network.jacobian(i).x for i in range(position + 1)]))


def test_a_batch_in_lockstep_is_each_operator_alone(network: DetachedNetwork) -> None:
    batch = network.jacobians()
    assert [(J.prompt, J.token) for J in batch.operators] == [(p, i) for p, n in enumerate(LENGTHS) for i in range(n)]
    assert batch.shapes == [(24, 24)] * len(batch)
    chosen = [(16, 1), (0, 3), (5, 2), (11, 4), (12, 1)]
    X = [(i, normal(24, b, seed=i)) for i, b in chosen]
    for found, (i, block) in zip(batch.matmat(X), X, strict=True):
        alone = batch.operators[i].matmat(block)
        assert (found - alone).norm() <= 1e-13 * alone.norm()
    for found, (i, block) in zip(batch.rmatmat(X), X, strict=True):
        alone = batch.operators[i].rmatmat(block)
        assert (found - alone).norm() <= 1e-13 * alone.norm()
    assert [batch.cost(i) for i in range(len(batch))] == [J.cost() for J in batch.operators]


def test_a_batch_is_a_sequence_of_its_operators(network: DetachedNetwork) -> None:
    batch = network.jacobians()
    assert list(batch) == [batch[i] for i in range(len(batch))] == batch.operators
    assert batch[-1] is batch.operators[-1]
    assert isinstance(batch, Sequence) and batch.index(batch[2]) == 2
    with pytest.raises(InputError, match=f"operator {-len(batch) - 1} does not exist"):
        batch[-len(batch) - 1]
    assert list(batch[2:5]) == batch.operators[2:5]
    assert isinstance(batch[2:5], JacobianBatch)
    for index in (17, -18, "a", True, None):
        with pytest.raises(InputError, match=r"does not exist; this batch has operators 0\.\.16"):
            batch[index]  # type: ignore[call-overload]
    with pytest.raises(InputError, match="got none"):
        batch[5:5]


def test_a_batch_says_what_it_is_in_a_line(network: DetachedNetwork) -> None:
    said = repr(network.jacobians([0, 3], source=layer(1), target=mlp(2)))
    assert said.startswith("JacobianBatch(2 × DetachedJacobian, shape=(24, 24), input: the residual stream entering")
    assert "block 1, target: mlp(2), freeze='gate'" in said and "\n" not in said
    assert "shapes=(24, 24) to (24, 288)" in repr(JacobianBatch([network.jacobian(0), network.jacobian("joint")]))


@pytest.mark.parametrize("name", ["matmat", "rmatmat", "matmat_sum"])
def test_products_of_what_is_no_pair_are_refused(network: DetachedNetwork, name: str) -> None:
    x, product = normal(24, 2), getattr(network.jacobians(), name)
    for index in (99, -1, "a", None, True):
        with pytest.raises(InputError, match=rf"operator {index!r} does not exist; .* operators 0\.\.16"):
            product([(index, x)])
    for blocks, got in (([x, x, x], "Tensor"), ([(0,)], "tuple of 1"), ([(0, x), 3], "int"), (x, "Tensor")):
        with pytest.raises(OperatorError, match=rf"{name} takes a list of \(operator, block\) pairs; got {got}"):
            product(blocks)
    for blocks in (None, 3):
        with pytest.raises(OperatorError, match="takes a list of"):
            product(blocks)
    with pytest.raises(OperatorError, match="takes a torch tensor"):
        product([(0, None)])


def test_parts_and_costs_of_no_operator_are_refused(network: DetachedNetwork) -> None:
    batch = network.jacobians()
    for index in (17, -1, 0.5):
        with pytest.raises(InputError, match="does not exist"):
            batch.part([index])  # type: ignore[list-item]
        with pytest.raises(InputError, match="does not exist"):
            batch.cost(index)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got int"):
        batch.part(3)  # type: ignore[arg-type]


def test_one_cotangent_shared_by_all_operators(network: DetachedNetwork) -> None:
    Y = normal(24, 3)
    for tokens in (None, slice(2, 4), [(1, 3), 0, (1, 0)], [5], ["joint"]):
        batch = network.jacobians(tokens)  # type: ignore[arg-type]
        for found, J in zip(batch.rmatmat_shared(Y), batch.operators, strict=True):
            alone = J.rmatmat(Y)
            assert found.shape == alone.shape
            assert (found - alone).norm() <= 1e-13 * alone.norm()


def test_a_part_of_a_batch_is_its_operators_alone(network: DetachedNetwork) -> None:
    batch, chosen = network.jacobians(), [5, 9, 3]
    part, Y = batch.part(chosen), normal(24, 2)
    assert part.operators == [batch.operators[index] for index in chosen]
    assert part.shared_cost() < batch.shared_cost()  # from token 3 on
    for found, index in zip(part.rmatmat_shared(Y), chosen, strict=True):
        assert (found - batch.operators[index].rmatmat(Y)).norm() <= 1e-13 * found.norm()


def test_batches_of_mixed_positions_share_a_cotangent_too(network: DetachedNetwork) -> None:
    operators = [network.jacobian(i, position=p) for i, p in ((0, 11), (2, 7), (7, 7), (3, 11))]
    operators.append(network.jacobian((1, 1), position=3))
    batch, Y = JacobianBatch(operators), normal(24, 2)
    for found, J in zip(batch.rmatmat_shared(Y), operators, strict=True):
        assert (found - J.rmatmat(Y)).norm() <= 1e-13 * found.norm()
    X = [(i, normal(24, 2, seed=i)) for i in range(len(operators))]
    for found, (i, block) in zip(batch.matmat(X), X, strict=True):
        assert (found - operators[i].matmat(block)).norm() <= 1e-13 * found.norm()


@pytest.mark.parametrize("frozen", [True, False])
def test_sums_of_products_and_shared_cotangents_in_few_rows(network: DetachedNetwork, frozen: bool) -> None:
    """Any tokens of any prompts and ends, a token twice, joint operators: Σ A_i X_i and the A_iᵀ Y, term by term."""
    ends = ((0, 11), (5, 11), (5, 11), (3, 7), ((1, 2), 4), ("joint", 6))
    mixed = JacobianBatch([network.jacobian(i, position=p, frozen=frozen) for i, p in ends])
    every = network.jacobians() if frozen else network.jacobians([0, 11, (1, 0), (1, 4)], frozen=False)
    for batch in (mixed, every, network.jacobians([9, 10], frozen=frozen)):
        for chosen in (range(len(batch)), [len(batch) - 1], [0, 1]):
            X = [(i, normal(batch.shapes[i][1], 3, seed=i)) for i in chosen]
            expected = sum(batch.operators[i].matmat(block) for i, block in X)
            assert (batch.matmat_sum(X) - expected).norm() <= 1e-13 * expected.norm()
        Y = normal(24, 2)
        for found, J in zip(batch.rmatmat_shared(Y), batch.operators, strict=True):
            assert (found - J.rmatmat(Y)).norm() <= 1e-13 * found.norm()


def test_shared_columns_cost_the_rows_from_the_first_token_on(network: DetachedNetwork) -> None:
    """One segment for each prompt and end: as many rows as the earliest token's own column."""
    assert network.jacobians([0, 3, 11]).shared_cost() == network.jacobian(0).cost()
    assert network.jacobians([9, 10, 11]).shared_cost() == network.jacobian(9).cost()
    both = network.jacobian(8).cost() + network.jacobian((1, 2)).cost()
    assert network.jacobians([8, (1, 2), 9]).shared_cost() == both


def test_sums_of_what_cannot_be_added_are_refused(network: DetachedNetwork) -> None:
    batch = network.jacobians()
    with pytest.raises(InputError, match="no blocks"):
        batch.matmat_sum([])
    with pytest.raises(OperatorError, match="one width; got 2 and 3"):
        batch.matmat_sum([(0, normal(24, 2)), (1, normal(24, 3))])


@pytest.mark.parametrize(
    ("dtype", "bar"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str
)
def test_lower_precisions_do_not_depend_on_their_company(dtype: torch.dtype, bar: float) -> None:
    batch = network_of("llama", dtype).jacobians()
    X = [(i, normal(24, 3, seed=i, dtype=dtype)) for i in range(len(batch))]
    for name in ("matmat", "rmatmat"):
        for found, (i, block) in zip(getattr(batch, name)(X), X, strict=True):
            alone = getattr(batch.operators[i], name)(block)
            assert (found - alone).double().norm() <= bar * alone.double().norm()


def test_the_scipy_face(network: DetachedNetwork) -> None:
    J = network.jacobian(4)
    A = J.aslinearoperator()
    dense = J.dense().numpy()
    x, X = normal(24).numpy(), normal(24, 3).numpy()
    assert A.shape == J.shape
    assert A.dtype == np.float64
    for found, expected in ((A @ x, dense @ x), (A @ X, dense @ X), (A.T @ x, dense.T @ x), (A.H @ X, dense.T @ X)):
        assert np.linalg.norm(found - expected) <= 1e-13 * np.linalg.norm(expected)
    from scipy.sparse.linalg import svds

    values = svds(A, k=4, return_singular_vectors=False)
    assert np.allclose(sorted(values), sorted(np.linalg.svd(dense)[1][:4]), rtol=1e-9)


def test_the_sign_of_a_product_takes_columns_or_one_vector(network: DetachedNetwork) -> None:
    J = network.jacobian(4, target=probe(normal(3, 24)))
    X, x = normal(24, 2), normal(24).requires_grad_()
    assert torch.equal(J @ X, J.matmat(X)) and torch.equal(J.T @ J.matmat(X), J.rmatmat(J.matmat(X)))
    product = J @ x
    assert torch.equal(product, J.matmat(x[:, None])[:, 0])
    y = normal(3)
    assert torch.equal(torch.autograd.grad(product, x, y)[0], J.T @ y)
    for wrong in (X.T, y, X[None], X[:, 0].float(), X.numpy(), J, 2.0):
        with pytest.raises(OperatorError, match=r"matmat takes"):
            J @ wrong  # type: ignore[operator]


def test_two_probes_with_rows_in_the_same_memory_are_two_operators(network: DetachedNetwork) -> None:
    """The first probe's rows are gone when the second's are made: nothing may be remembered by address."""
    output = network.jacobian(0).dense()
    for seed in range(20):
        rows = normal(2, 24, seed=seed).float()
        found = network.jacobian(0, target=probe(rows)).dense()
        expected = rows.double() @ output
        del rows
        assert (found - expected).norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_probe_is_of_the_rows_that_it_was_given(frozen: bool, dtype: torch.dtype) -> None:
    """Whatever is written to them later, in the network's dtype or another."""
    network = network_of("llama", dtype)
    rows = normal(3, 24)
    before = network.jacobian(0, target=probe(rows), frozen=frozen)
    expected = before.dense()
    rows.copy_(torch.eye(24)[:3])
    after = network.jacobian(0, target=probe(rows), frozen=frozen)
    assert torch.equal(before.dense(), expected)
    first = network.jacobian(0, frozen=frozen)
    for found, all_rows in ((after.dense(), first.dense()), (after.y, first.y)):
        assert (found - all_rows[:3]).norm() <= 8 * torch.finfo(dtype).eps * all_rows[:3].norm()


@pytest.mark.parametrize("make", ["llama", "gemma"])
@pytest.mark.parametrize("freeze", ["gate", "up", "half"])
def test_a_dropped_head_is_one_whose_output_columns_are_zero(make: str, freeze: Any) -> None:
    network = network_of(make, freeze=freeze)
    before = network.jacobian("joint").dense()
    found = network.replace(drop=[head(1, 2), head(1, 0), head(2, 3)])
    model = getattr(tiny_models, make)(bias=True)
    width = model.config.head_dim
    for block, index in ((1, 2), (1, 0), (2, 3)):
        model.model.layers[block].self_attn.o_proj.weight.data[:, index * width : (index + 1) * width] = 0
    # The coefficients stay those of the unchanged pass.
    changed = DetachedNetwork(
        tiny_models.loaded(model),
        network.family,
        network.prompts,
        network.freeze,
        network.coefficients,
        network.streams,
    )
    for target in ("output", layer(1), attention(2), mlp(2)):
        one, other = found.jacobian("joint", target=target), changed.jacobian("joint", target=target)
        assert (one.dense() - other.dense()).norm() <= 1e-13 * other.dense().norm()
        assert (one.offset - other.offset).norm() <= 1e-13 * other.offset.norm()
    assert torch.equal(network.jacobian("joint").dense(), before)


@pytest.mark.parametrize("make", ["llama", "gemma"])
@pytest.mark.parametrize("freeze", ["gate", "half"])
@pytest.mark.parametrize("place", [attention(1), mlp(2), mlp(0)], ids=str)
def test_a_dropped_branch_adds_nothing(make: str, freeze: Any, place: Any) -> None:
    """With every factor pinned, the model runs again with the branch's output, bias and all, replaced by zero."""
    model = getattr(tiny_models, make)(bias=True)
    ids = tiny_models.prompt_ids(tiny_models.LENGTH)[0]
    network = detach(tiny_models.loaded(model), input_ids=ids, freeze=freeze).replace(drop=[place])
    x = embeddings_of(model, ids)
    oracle = OracleB(model, x, freeze)
    block = model.model.layers[place.index]
    sandwiched = make == "gemma"
    module = {
        "attention": block.post_attention_layernorm if sandwiched else block.self_attn.o_proj,
        "mlp": block.post_feedforward_layernorm if sandwiched else block.mlp.down_proj,
    }[place.kind]
    oracle.pin.rewind()
    with module.register_forward_hook(lambda m, a, out: torch.zeros_like(out)):
        values = oracle._streams(x)
    J = network.jacobian("joint")
    estimate = J.matmat(J.x[:, None])[:, 0] + J.offset
    assert (estimate - values["output"][-1]).norm() <= 1e-13 * values["output"][-1].norm()
    for target in ("output", "residual", "logits", layer(1), mlp(1)):
        J = network.jacobian("joint", target=target, position=5)
        name = str(J.target).replace("(", ".").rstrip(")")
        assert (J.y - values[name][5]).norm() <= 1e-12 * values[name][5].norm(), name
    expected = torch.softmax(values["logits"][-1], dim=-1).topk(10)
    assert [candidate.id for candidate in network.prediction] == expected.indices.tolist()
    assert [candidate.probability for candidate in network.prediction] == pytest.approx(expected.values.tolist())
    branch = network.jacobian("joint", target=place)
    assert not branch.dense().any()
    assert not branch.offset.any()


def test_what_is_dropped_is_of_one_block_and_one_expert() -> None:
    """Their numbers are whole: block 1 is not the beginning of block 10, nor expert 1 that of expert 10."""
    deep = detach((tiny_models.llama(num_hidden_layers=12), None), input_ids=[3, 1, 4, 1, 5])
    many = detach((qwen3_moe(num_experts=12, num_experts_per_tok=6), None), input_ids=tiny_models.prompt_ids(12)[0])
    assert {"blocks.0.mlp.experts.1.positions", "blocks.0.mlp.experts.10.positions"} <= many.coefficients.keys()
    for network, item, prefix in (
        (deep, mlp(1), "blocks.1."),
        (deep, attention(1), "blocks.1."),
        (deep, head(1, 2), "blocks.1."),
        (many, expert(0, 1), "blocks.0.mlp.experts.1."),
    ):
        dropped = network.replace(drop=item).coefficients
        changed = {name for name, value in network.coefficients.items() if not torch.equal(dropped[name], value)}
        assert changed and all(name.startswith(prefix) for name in changed), (item, changed)


def test_parts_dropped_one_after_another_are_dropped_together(network: DetachedNetwork) -> None:
    """Biases of a branch leave with it and stay away."""
    items = [mlp(1), attention(2), head(0, 1)]
    together, after = network.replace(drop=items), network
    for item in items:
        after = after.replace(drop=item)
    assert after.dropped == together.dropped
    for target in ("output", mlp(1), attention(2)):
        one, other = (n.jacobian("joint", target=target) for n in (after, together))
        assert torch.equal(one.offset, other.offset) and torch.equal(one.dense(), other.dense())


def test_biases_of_experts_alone_make_an_offset() -> None:
    network = detach((gpt_oss(attention_bias=False), None), input_ids=[3, 1, 4, 1, 5])
    J = network.jacobian("joint")
    assert J.offset.any() and J.reconstruction.norm_error <= 1e-13


def test_an_altered_network_has_its_own_output_and_no_reconstruction(network: DetachedNetwork, tmp_path: Any) -> None:
    name = next(name for name in network.coefficients if "blocks.2.mlp" in name and "rstd" not in name)
    model = network.loaded
    before = [candidate.probability for candidate in network.prediction]
    for altered in (network.replace(drop=mlp(1)), network.replace({name: 2 * network.coefficients[name]})):
        again = DetachedNetwork.load(altered.save(tmp_path), model)
        for found in (altered, again, altered.replace()):
            x = found.inputs(-1, 0)
            assert torch.equal(found.jacobian(0).y, found.apply(x[None])[0])
            assert [candidate.probability for candidate in found.prediction] != before
            with pytest.raises(InputError, match="switched off has no forward pass"):
                found.reconstruction  # noqa: B018
            with pytest.raises(InputError, match="take it of the network before replace"):
                found.jacobian(0, frozen=False)
    assert [candidate.probability for candidate in network.replace().prediction] == before
    assert network.replace().reconstruction.norm_error <= 1e-13
    assert "without mlp.1, " in repr(network.replace(drop=mlp(1)).jacobian(0))
    assert "without" not in repr(network.jacobian(0))


def test_altered_logits_bend_in_a_softcap_whose_ratio_the_map_keeps() -> None:
    model = gemma2(torch.float64)
    model.config.final_logit_softcapping = 3.0
    network = detach((model, None), input_ids=[3, 1, 4, 1])
    altered = network.replace(drop=mlp(1))
    J, read = altered.jacobian("joint", target="logits"), altered.jacobian("joint").y @ model.lm_head.weight.T
    assert (J.y - 3 * torch.tanh(read / 3)).norm() <= 1e-13 * J.y.norm()
    z = network.jacobian("joint").y @ model.lm_head.weight.T
    kept = 3 * torch.tanh(z / 3) / z * read
    assert (J.matmat(J.x[:, None])[:, 0] + J.offset - kept).norm() <= 1e-13 * kept.norm()
    assert (J.y - kept).norm() >= 1e-3 * J.y.norm()


@pytest.mark.parametrize("source", [1, 2])
def test_the_stream_of_an_altered_network_takes_one_sweep(
    network: DetachedNetwork, source: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    altered = network.replace(drop=mlp(1))
    values = [altered.value(layer(source - 1), 0, position) for position in range(altered.lengths[0])]
    swept, pruned = Mock(side_effect=unpruned), Mock(side_effect=forward)
    monkeypatch.setattr(affine, "unpruned", swept)
    monkeypatch.setattr(affine, "forward", pruned)
    stream = altered.inputs(source, 0)
    assert (swept.call_count, pruned.call_count) == (1, 0)
    assert (stream - torch.stack(values)).norm() <= 1e-14 * stream.norm()


@pytest.mark.parametrize("make", [gpt2, opt])
def test_the_first_stream_of_a_network_with_other_positions_is_its_own(make: Any, tmp_path: Any) -> None:
    network = detach((make(torch.float64), None), input_ids=[3, 1, 4, 1])
    name = next(name for name in network.coefficients if name.startswith("entry."))
    altered = network.replace({name: 0 * network.coefficients[name]})
    for found in (altered, DetachedNetwork.load(altered.save(tmp_path), network.loaded)):
        assert found.jacobian("joint", source=layer(0)).rebuilt.norm_error <= 1e-13
    dropped = network.replace(drop=mlp(1))
    assert torch.equal(dropped.inputs(0, 0), network.inputs(0, 0))


@pytest.mark.parametrize("make", [tiny_models.llama, undeclared.ctrl])
def test_a_network_is_of_the_embeddings_it_was_given(make: Any) -> None:
    """It neither follows what is written to them later, nor writes to them (CTRL scales them in place)."""
    model = make(torch.float64)
    given = model.get_input_embeddings()(torch.tensor([[3, 1, 4, 1]]))
    values = given.detach().clone()
    network = detach((model, None), inputs_embeds=given)
    assert torch.equal(given, values)
    assert not network.jacobian(0).x.requires_grad
    expected = network.jacobian(0, target=mlp(0)).y, network.jacobian(0).dense()
    again = detach((model, None), inputs_embeds=given)
    with torch.no_grad():
        given.zero_()
    assert torch.equal(again.jacobian(0).x, values[0, 0])
    for found, before in zip((again.jacobian(0, target=mlp(0)).y, again.jacobian(0).dense()), expected, strict=True):
        assert torch.equal(found, before)
    for frozen in (True, False):
        assert torch.equal(again.jacobian(0, frozen=frozen).dense(), network.jacobian(0, frozen=frozen).dense())
    assert again.reconstruction.norm_error <= 1e-13


def test_replaced_coefficients_stay_what_they_were(network: DetachedNetwork) -> None:
    name = next(name for name in network.coefficients if "blocks.2.mlp" in name and "rstd" not in name)
    given = 2 * network.coefficients[name]
    changed = network.replace({name: given})
    before = changed.jacobian(0).dense()
    given.zero_()
    assert torch.equal(changed.jacobian(0).dense(), before)


def test_replaced_coefficients_take_effect_and_bad_ones_are_refused(network: DetachedNetwork) -> None:
    name = next(name for name in network.coefficients if "blocks.2.mlp" in name and "rstd" not in name)
    before = network.jacobian(0, target=mlp(2)).dense()
    doubled = network.replace({name: 2 * network.coefficients[name]})
    assert (doubled.jacobian(0, target=mlp(2)).dense() - 2 * before).norm() <= 1e-14 * before.norm()
    assert torch.equal(network.jacobian(0, target=mlp(2)).dense(), before)
    absorbed = "blocks.2.input_layernorm.rstd"
    bads = (
        {"blocks.9.mlp": torch.ones(1)},
        {name: torch.ones(2, 2)},
        {name: [1.0]},
        {absorbed: 2 * network.coefficients[absorbed]},
        {name: torch.full_like(network.coefficients[name], float("nan"))},
        {name: torch.full_like(network.coefficients[name], float("inf"))},
    )
    for bad in bads:
        with pytest.raises(InputError, match="cannot replace"):
            network.replace(bad)
    for item, message in (
        (head(0, 4), r"block 0 has heads 0\.\.3, not 4"),
        (head(0, -5), r"block 0 has heads 0\.\.3, not -5"),
        (head(3, 0), r"cannot drop head\(3, 0\); .* with l in 0\.\.2, or negative from the end"),
        (expert(0, -1), "block 0 has no routed experts"),
        (expert(-4, 0), r"cannot drop expert\(-4, 0\)"),
        (mlp(3), r"cannot drop mlp\(3\)"),
        (attention(-4), r"cannot drop attention\(-4\)"),
        (layer(0), r"cannot drop layer\(0\)"),
        (None, "cannot drop None"),
        ("mlp", "cannot drop 'mlp'"),
    ):
        with pytest.raises(InputError, match=message):
            network.replace(drop=[item])
    for items in (None, "mlp", 3):
        with pytest.raises(InputError, match=f"cannot drop {items!r}"):
            network.replace(drop=items)


def test_what_cannot_be_is_one_clear_line(network: DetachedNetwork) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"token": 12}, "does not exist"),
        ({"token": -13}, "does not exist"),
        ({"token": (2, 0)}, "prompt 2 does not exist"),
        ({"token": "all"}, "selects no token; give an index, .*or a slice"),
        ({"token": 1.5}, "selects no token"),
        ({"token": True}, "selects no token"),
        ({"token": (0, False)}, "selects no token"),
        ({"token": (True, 0)}, "selects no token"),
        ({"token": (0, 1, 2)}, "selects no token"),
        ({"token": [0, True]}, "True selects no token; give an index"),
        ({"token": [slice(0, 2)]}, "selects no token"),
        ({"token": np.arange(2)}, "selects no token"),
        ({"token": torch.zeros(2, 300)}, "selects no token"),
        ({"position": True}, "is no index"),
        ({"position": torch.zeros(2, 300)}, "is no index"),
        ({"target": layer(True)}, "does not exist"),
        ({"token": 5, "position": 4}, "comes after position"),
        ({"position": 12}, "does not exist"),
        ({"source": layer(3)}, "does not exist"),
        ({"source": "middle"}, "source must be"),
        ({"source": "layer(1)"}, r"not 'layer\(1\)'; import the function"),
        ({"target": layer(-4)}, "does not exist"),
        ({"target": "middle"}, "target must be"),
        ({"source": layer(2), "target": layer(1)}, "lies before"),
        ({"target": probe(torch.ones(2, 5))}, "width 5"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            network.jacobian(**options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no tokens"):
        network.jacobians([])
    assert network.jacobian(-1).token == 11
    assert network.jacobian(0, position=-2).position == 10
    for negative in (-1, -2, -3):
        J = network.jacobian(0, source=layer(negative), target=mlp(negative))
        assert (J.source, J.target.index) == (3 + negative, 3 + negative)
    assert network.jacobian(np.int64(3), target=layer(np.int64(1))).token == 3
    assert type(network.jacobian(torch.tensor(3)).token) is int


def test_a_slice_or_list_of_tokens_gives_their_jacobians(network: DetachedNetwork) -> None:
    for token in (slice(2, 5), [2, 3, 4], [(0, 2), (0, -9), np.int64(4)]):
        batch = network.jacobian(token, target=mlp(1), position=-2)
        expected = network.jacobians(token, target=mlp(1), position=-2)
        assert isinstance(batch, JacobianBatch)
        operators = zip(batch.operators, expected.operators, strict=True)
        assert all((a.prompt, a.token, a.position) == (b.prompt, b.token, b.position) for a, b in operators)
        assert str(batch.operators[0].target) == "mlp(1)"
    with pytest.raises(InputError, match="no tokens"):
        network.jacobian([])


def test_a_tuple_is_one_prompt_and_token_and_any_other_iterable_a_list(network: DetachedNetwork) -> None:
    asked: list[tuple[Any, list[tuple[int, int | None]]]] = [
        (2, [(0, 2)]),
        (torch.tensor(1), [(0, 1)]),
        ((1, 0), [(1, 0)]),
        ([1, 0], [(0, 1), (0, 0)]),
        (np.arange(2), [(0, 0), (0, 1)]),
        ([[1, 0], (0, 3)], [(1, 0), (0, 3)]),
        (((1, 0), (0, 3)), [(1, 0), (0, 3)]),
        ((1, "joint"), [(1, None)]),
        ("joint", [(0, None)]),
    ]
    for tokens, expected in asked:
        assert [(J.prompt, J.token) for J in network.jacobians(tokens).operators] == expected
    for refused in ((0, 1, 2), (1,), 1.5, "0", [(0, 1, 2)], [slice(0, 2)], [(True, 0)], True):
        with pytest.raises(InputError, match="selects no token; give an index, "):
            network.jacobians(refused)  # type: ignore[arg-type]


def test_equal_probes_share_one_program_and_the_latest_alone_is_kept(network: DetachedNetwork) -> None:
    rows = torch.randn(2, network.jacobian(0).shape[0], dtype=torch.float64)
    programs = [network.program(-1, probe(rows)) for _ in range(2)]
    assert programs[0] is programs[1]
    assert network.program(-1, probe(2 * rows)) is not programs[0]
    first = weakref.ref(programs.pop())
    del programs
    gc.collect()
    assert first() is None


def test_one_jacobian_is_no_batch(network: DetachedNetwork) -> None:
    with pytest.raises(InputError, match=r"a batch is of a list of Jacobians; got DetachedJacobian$"):
        JacobianBatch(network.jacobian(0))  # type: ignore[arg-type]


def test_a_batch_of_different_maps_is_refused(network: DetachedNetwork) -> None:
    rows = normal(24, 24)
    J = network.jacobian(0, target=probe(rows))
    assert len(JacobianBatch([J, network.jacobian(3, target=probe(rows.clone()), position=5)])) == 2
    for other in (
        network.jacobian(0),
        network.jacobian(0, target=probe(2 * rows)),
        network.jacobian(0, target=probe(rows.float())),
        network.jacobian(0, source=layer(0), target=probe(rows)),
        network.jacobian(0, target=probe(rows), frozen=False),
        network.replace().jacobian(0, target=probe(rows)),
    ):
        with pytest.raises(InputError, match="make a batch of each"):
            JacobianBatch([J, other])
    for index in (0, 1):
        with pytest.raises(InputError, match="make a batch of each"):
            JacobianBatch([network.jacobian(0, target=layer(index)), network.jacobian(0, target=layer(1 - index))])
    with pytest.raises(InputError, match="got a Transposed"):
        JacobianBatch([J, J.T])
    with pytest.raises(InputError, match="got none"):
        JacobianBatch([])


class LookedUpSlowly(Segment):
    """A segment that lets other threads run whenever it is looked up."""

    def __hash__(self) -> int:
        time.sleep(1e-4)
        return super().__hash__()


def test_threads_that_share_an_operator_get_their_own_products(network: DetachedNetwork) -> None:
    J = network.jacobian(0)
    segments = [LookedUpSlowly(0, 0, 11, width) for width in (1, 2)]

    def widths(segment: Segment) -> set[int]:
        x = normal(segment.width, 24)
        return {len(J.sweeps.forward([segment], x)) for _ in range(10)}

    assert at_once([partial(widths, segment) for segment in segments]) == [{1}, {2}]


@pytest.mark.parametrize("part", ["model.norm", "model.embed_tokens"])
def test_an_output_of_zero_is_reconstructed_exactly(part: str) -> None:
    model = tiny_models.llama()
    model.get_submodule(part).weight.data.zero_()
    found = detach((model, None), input_ids=[3, 1, 4, 1, 5]).reconstruction
    assert (found.relative_error, found.norm_error, found.offset_share) == (0.0, 0.0, 0.0)


def test_what_is_not_zero_is_infinitely_far_from_an_output_of_zero() -> None:
    zero = torch.zeros(3)
    found = Reconstruction.of(zero, torch.tensor([1.0, 0.0, 0.0]), zero)
    assert (found.relative_error, found.norm_error, found.offset_share) == (math.inf, math.inf, 0.0)


def test_errors_of_a_reconstruction_are_those_of_the_paper_and_of_norms() -> None:
    y, error, offset = normal(9, seed=1) + 3, 0.1 * normal(9, seed=2) + 0.2, normal(9, seed=3)
    found = Reconstruction.of(y, y + error, offset)
    assert found.relative_error == pytest.approx(float(error.std() / y.std()))
    assert found.norm_error == pytest.approx(float(error.norm() / y.norm()))
    assert found.offset_share == pytest.approx(float(offset.norm() / y.norm()))


@pytest.mark.parametrize("frozen", [True, False])
def test_branches_are_multiplied_as_they_are_added(frozen: bool) -> None:
    """Granite adds 0.6 of each: the stream after a block is what entered and its branches, frozen or not."""
    network = detach((granite(torch.float64), None), input_ids=[3, 1, 4, 1, 5])
    stream, first, second = (
        network.jacobian(4, source=layer(1), target=target, frozen=frozen).dense()
        for target in (layer(1), attention(1), mlp(1))
    )
    assert (stream - torch.eye(24) - first - second).norm() <= 1e-13 * stream.norm()


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_probe_of_one_row_is_reconstructed(network: DetachedNetwork) -> None:
    found = network.jacobian(0, target=probe(normal(1, 24))).reconstruction
    assert found.relative_error == found.norm_error <= 1e-12


def test_inputs_that_do_not_fit_the_network_are_refused(network: DetachedNetwork) -> None:
    X = network.inputs(-1, 0)[None]
    bad: list[tuple[Any, str]] = [
        (X.numpy(), "a torch tensor; got ndarray"),
        (X[0], "apply takes inputs"),
        (X.float(), "apply takes torch.float64"),
        (X.to("meta"), "meta"),
        (X * torch.nan, "NaN or an infinity"),
    ]
    for inputs, message in bad:
        with pytest.raises((InputError, OperatorError), match=message) as caught:
            network.apply(inputs)
        assert "\n" not in str(caught.value)


def test_finite_blocks_whose_sum_overflows_are_taken(network: DetachedNetwork) -> None:
    largest = torch.full((24, 2), torch.finfo(torch.float64).max, dtype=torch.float64)
    assert largest.sum().isinf()
    check_block(network.jacobian(0), largest, 24, "matmat")


def test_blocks_that_do_not_fit_are_refused(network: DetachedNetwork) -> None:
    J, batch = network.jacobian(0), network.jacobians()
    bad: list[tuple[Any, str]] = [
        (torch.zeros(24, dtype=torch.float64), "columns"),
        (torch.zeros(23, 2, dtype=torch.float64), "columns"),
        (torch.zeros(24, 2), "float64"),
        (torch.zeros(24, 2, dtype=torch.float64, device="meta"), "meta"),
        (torch.full((24, 2), float("inf"), dtype=torch.float64), "NaN or an infinity"),
        (torch.tensor([float("inf"), -float("inf")] * 24, dtype=torch.float64).view(24, 2), "NaN or an infinity"),
        (np.zeros((24, 2)), "torch tensor"),
    ]
    for block, message in bad:
        for call in (
            J.matmat,
            J.rmatmat,
            J.T.matmat,
            batch.rmatmat_shared,
            lambda b: batch.matmat([(1, b)]),
            lambda b: batch.rmatmat([(1, b)]),
        ):
            with pytest.raises(OperatorError, match=message):
                call(block)


def test_the_definition_says_what_the_operator_is(network: DetachedNetwork) -> None:
    J = network.jacobian(3, source=layer(1), target=mlp(2), position=7)
    assert J.definition | {"family": "", "input": "", "frozen": ""} == {
        "family": "",
        "freeze": "gate",
        "frozen": "",
        "route": "frozen",
        "input": "",
        "target": "mlp(2)",
        "target_definition": "mlp(2)",
        "tail": "the final norm",
        "position": 7,
        "token": 3,
        "dtype": "float64",
    }
    assert J.definition["input"] == "the residual stream entering block 1"
    ends = {"output": "after the final norm", "residual": "the residual stream before the final norm"}
    assert {name: network.jacobian(0, target=name).definition["target_definition"] for name in ends} == ends
    for word in ("token=3", "position=7", "mlp(2)", "gate", "float64"):
        assert word in repr(J)


def test_coefficients_are_read_only(network: DetachedNetwork) -> None:
    name = next(iter(network.coefficients))
    with pytest.raises(TypeError):
        network.coefficients[name] = network.coefficients[name]  # type: ignore[index]


def test_a_norm_times_one_plus_w_is_not_rounded_to_half_precision() -> None:
    network = network_of("gemma", torch.bfloat16)
    (scale,) = (step for step in network.tail.branches[0].chain if isinstance(step, ColumnScale))
    assert torch.equal(scale.w, 1 + network.model.model.norm.weight.detach().float())


def test_a_capped_logit_of_zero_has_the_slope_of_its_limit() -> None:
    model = gemma2(torch.float64)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone().index_fill_(0, torch.tensor(7), 0))
    J = detach((model, None), input_ids=[3, 1, 4, 1, 5]).jacobian("joint", target="logits")
    assert torch.isfinite(J.dense()).all() and not J.dense()[7].any()


def test_capture_and_products_do_not_touch_the_coefficients(network: DetachedNetwork) -> None:
    before = {name: value.clone() for name, value in network.coefficients.items()}
    x = network.jacobian(0).x.clone()
    network.jacobians().rmatmat_shared(normal(24, 2))
    network.jacobian("joint", target="logits").dense()
    assert all(torch.equal(network.coefficients[name], value) for name, value in before.items())
    assert torch.equal(network.jacobian(0).x, x)

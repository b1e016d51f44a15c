"""Derivatives of products are products: against the matrices, in reverse and in forward mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.operators import DetachedNetwork, detach
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> DetachedNetwork:
    return detach(tiny_models.loaded(tiny_models.llama(bias=True)), input_ids=tiny_models.prompt_ids(4))


@pytest.fixture(params=["token", "joint", "transposed", "ordinary"])
def operator(request: pytest.FixtureRequest, network: DetachedNetwork) -> Any:
    J = network.jacobian("joint" if request.param == "joint" else 1, frozen=request.param != "ordinary")
    return J.T if request.param == "transposed" else J


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_transposed_products(operator: Any) -> None:
    A, X, Y = operator.dense(), normal(operator.shape[1], 3), normal(operator.shape[0], 3)
    for product, matrix, at, weights in ((operator.matmat, A, X, Y), (operator.rmatmat, A.T, Y, X)):
        leaf = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((product(leaf) * weights).sum(), leaf)
        same(gradient, matrix.T @ weights)
        same(torch.func.grad(lambda x, w=weights, p=product: (p(x) * w).sum())(at), gradient)
        same(torch.func.vjp(product, at)[1](weights)[0], gradient)
        same(torch.vmap(product)(torch.stack([at, 2 * at]))[1], 2 * matrix @ at)
    same(torch.autograd.functional.jacobian(lambda x: operator.matmat(x[:, None])[:, 0], X[:, 0]), A)
    same(torch.func.jacrev(lambda x: operator.matmat(x[:, None])[:, 0])(X[:, 0]), A)


def test_second_derivatives_are_products_again(operator: Any) -> None:
    A, x = operator.dense(), normal(operator.shape[1], 1).requires_grad_()
    assert torch.autograd.gradcheck(operator.matmat, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: operator.matmat(x) ** 2, (x,), fast_mode=True)
    (gradient,) = torch.autograd.grad(operator.matmat(x).square().sum() / 2, x, create_graph=True)
    v = normal(operator.shape[1], 1)
    same(torch.autograd.grad((gradient * v).sum(), x)[0], A.T @ (A @ v))


def test_tangents_are_products(network: DetachedNetwork) -> None:
    J = network.jacobian(1)
    A, x, v = J.dense(), normal(J.shape[1], 2), normal(2, J.shape[1]).T
    for product, matrix in ((J.matmat, A), (J.T.rmatmat, A), (J.T.T.matmat, A)):
        value, tangent = torch.func.jvp(product, (x,), (v,))
        same(value, matrix @ x)
        same(tangent, matrix @ v)
    assert torch.autograd.gradcheck(J.rmatmat, (normal(J.shape[0], 1).requires_grad_(),), check_forward_ad=True)
    same(torch.func.hessian(lambda x: J.matmat(x[:, None]).square().sum() / 2)(x[:, 0]), A.T @ A)


def test_forward_mode_does_not_nest(network: DetachedNetwork) -> None:
    J = network.jacobian(1, frozen=False)
    x = normal(J.shape[1], 1)
    with pytest.raises(OperatorError, match="differentiate them in reverse mode"):
        torch.func.jvp(J.matmat, (x,), (x,))
    same(torch.func.jvp(J.rmatmat, (x,), (x,))[1], J.dense().T @ x)


def test_batches_are_differentiated_as_their_operators(network: DetachedNetwork) -> None:
    batch = network.jacobians([0, 2, 1])
    matrices = [J.dense() for J in batch.operators]
    d_out, d_in = batch.shapes[0]

    def gradients(found: Callable[[list[Tensor]], Any], rows: int) -> list[Tensor]:
        leaves = [normal(rows, 2).requires_grad_(), normal(rows, 2).requires_grad_()]
        out = found(leaves)
        return list(torch.autograd.grad(sum((part * normal(*part.shape)).sum() for part in out), leaves))

    for index, gradient in zip((2, 0), gradients(lambda X: batch.matmat([(2, X[0]), (0, X[1])]), d_in), strict=True):
        same(gradient, matrices[index].T @ normal(d_out, 2))
    for index, gradient in zip((2, 0), gradients(lambda Y: batch.rmatmat([(2, Y[0]), (0, Y[1])]), d_out), strict=True):
        same(gradient, matrices[index] @ normal(d_in, 2))
    for gradient in gradients(lambda X: [batch.matmat_sum([(2, X[0]), (2, X[1])])], d_in):
        same(gradient, matrices[2].T @ normal(d_out, 2))
    for gradient in gradients(lambda Y: batch.rmatmat_shared(Y[0] + Y[1]), d_out):
        same(gradient, sum(matrices) @ normal(d_in, 2))


def test_the_network_itself_is_differentiated(network: DetachedNetwork) -> None:
    X = network.inputs(-1, 0)[None].repeat(2, 1, 1)
    slope = network.jacobian("joint").dense()
    found = torch.func.jacrev(lambda x: network.apply(x[None])[0])(X[0])
    same(found.flatten(1), slope)
    tangent = torch.func.jvp(network.apply, (X,), (X,))[1]
    same(tangent, X.flatten(1) @ slope.T)


def test_nothing_is_recorded_unless_it_is_asked_for(network: DetachedNetwork) -> None:
    J = network.jacobian(1)
    x = normal(J.shape[1], 1)
    assert J.matmat(x).grad_fn is None
    with torch.no_grad():
        assert J.matmat(x.requires_grad_()).grad_fn is None
    with torch.inference_mode():
        assert J.matmat(x).is_inference()


def test_products_can_be_changed_in_place(network: DetachedNetwork) -> None:
    ordinary, batch, joint = network.jacobian(1, frozen=False), network.jacobians([0, 1]), network.jacobian("joint")
    inputs = network.inputs(-1, 0)[None].repeat(2, 1, 1)
    pulled: tuple[Callable[[Tensor], list[Tensor]], ...] = (
        lambda Y: [batch.operators[1].rmatmat(Y)],
        lambda Y: [ordinary.rmatmat(Y)],
        lambda Y: [joint.rmatmat(Y)],
        batch.rmatmat_shared,
        lambda Y: batch.rmatmat([(0, Y), (1, Y)]),
    )
    pushed: tuple[Callable[[Tensor], list[Tensor]], ...] = (
        lambda X: [batch.operators[1].matmat(X)],
        lambda X: [ordinary.matmat(X)],
        lambda X: [batch.matmat_sum([(0, X), (1, X)])],
        lambda X: batch.matmat([(0, X), (1, X)]),
    )
    cases = [
        (product, normal(rows, 2))
        for rows, kind in zip(ordinary.shape, (pulled, pushed), strict=True)
        for product in kind
    ]
    for product, at in [*cases, (lambda X: [network.apply(X)], inputs)]:
        leaf = at.clone().requires_grad_()
        (expected,) = torch.autograd.grad(sum(part.square().sum() for part in product(leaf)), leaf)
        parts = product(leaf)
        squares = [part.square().sum() for part in parts[1:]]
        doubled = parts[0].mul_(2)
        (gradient,) = torch.autograd.grad(doubled.square().sum() / 4 + sum(squares), leaf)
        same(gradient, expected)
        plain = product(at)[0]
        plain += torch.ones_like(plain).requires_grad_()
        assert plain.requires_grad


def test_columns_under_vmap_are_columns(network: DetachedNetwork) -> None:
    J = network.jacobian(1)
    with pytest.raises(OperatorError, match=r"takes columns, shape \(24, b\); got \(24,\)"):
        torch.vmap(J.matmat)(normal(3, J.shape[1]))


def test_embeddings_inside_a_transform_are_refused(network: DetachedNetwork) -> None:
    rows = normal(3, 24)

    def y(x: Tensor) -> Tensor:
        return detach(network.loaded, inputs_embeds=x).jacobian(0).y

    transformed: tuple[Callable[[], object], ...] = (
        lambda: torch.func.grad(lambda x: y(x).sum())(rows),
        lambda: torch.func.jvp(y, (rows,), (rows,)),
        lambda: torch.func.functionalize(y)(rows),
        lambda: torch.vmap(y)(rows.expand(2, 3, 24)),
    )
    for call in transformed:
        with pytest.raises(InputError, match=r"inside a transform of torch\.func .*: detach before it"):
            call()


def test_embeddings_are_taken_where_torch_does_not_say_what_is_in_a_transform(
    network: DetachedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C._functorch, "is_functorch_wrapped_tensor")
    assert detach(network.loaded, inputs_embeds=normal(3, 24)).lengths == (3,)


def test_a_compiled_function_breaks_its_graph_at_a_product(network: DetachedNetwork) -> None:
    J, batch = network.jacobian(0), network.jacobians()
    X, Y = torch.randn(J.shape[1], 3, dtype=torch.float64), torch.randn(J.shape[0], 3, dtype=torch.float64)
    inputs = torch.randn(2, network.lengths[0], J.shape[1], dtype=torch.float64)
    for function, given in (
        (lambda X: 2 * J.matmat(X), X),
        (lambda Y: 2 * J.rmatmat(Y), Y),
        (lambda x: 2 * network.apply(x), inputs),
        (lambda X: 2 * batch.matmat_sum([(0, X), (1, X)]), X),
        (lambda X: torch.autograd.grad((J.matmat(X) ** 2).sum(), X)[0], X.requires_grad_()),
    ):
        assert torch.equal(torch.compile(function, backend="eager")(given), function(given))

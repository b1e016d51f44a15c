"""Products that autograd can differentiate: a linear map is its own derivative, and its transpose pulls gradients back.

So derivatives of every order are products again, in reverse and (unless a product takes it itself) in forward mode, and
under the transforms of `torch.func`. Nothing is recorded where no derivative is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from detjac_lanczos.operators.blocks import check_finite

Product = Callable[[Tensor], Tensor]
Products = Callable[..., Sequence[Tensor]]
"""From blocks of columns, (rows, b) each, to others."""


def product(name: str, value: Product, slope: Product, transposed: Product, block: Tensor) -> Tensor:
    """Return what `products` does of one block that gives one."""
    (found,) = products([name], lambda X: [value(X)], lambda X: [slope(X)], lambda Y: [transposed(Y)], block)
    return found


@torch.compiler.disable
def products(
    names: Sequence[str], value: Products, slope: Products, transposed: Products, *blocks: Tensor
) -> tuple[Tensor, ...]:
    """Return ``value(*blocks)`` of an affine map, such that autograd knows its derivative.

    Parameters
    ----------
    names : sequence of str
        What each block was given to, for the error if it is not finite; derivatives are taken as they come.
    value, slope, transposed : callable
        The map, its linear part, and the transpose of that.
    *blocks : Tensor, shape (rows, b) each

    Returns
    -------
    tuple of Tensor, shape (rows, b) each

    Raises
    ------
    OperatorError
        If a block is not finite.
    """
    return cast(tuple[Tensor, ...], _Affine.apply(names, value, slope, transposed, *blocks))


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        names: Sequence[str], value: Products, slope: Products, transposed: Products, *blocks: Tensor
    ) -> tuple[Tensor, ...]:
        for name, block in zip(names, blocks, strict=False):
            check_finite(block, name)
        # No views, so that what is returned can be changed in place: by a copy where autograd would see it shared.
        recorded = any(block.requires_grad for block in blocks)
        return tuple(part.clone() if recorded else part.detach() for part in value(*blocks))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.slope, ctx.transposed = inputs[2:4]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *products((), ctx.transposed, ctx.transposed, ctx.slope, *cotangents)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        return products((), ctx.slope, ctx.slope, ctx.transposed, *tangents[4:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        """Put what is mapped over beside the columns."""
        size = info.batch_size
        wide = [
            block[..., None].expand(*block.shape, size) if dim is None else block.movedim(dim, 2)
            for block, dim in zip(inputs[4:], in_dims[4:], strict=True)
        ]
        out = products(*inputs[:4], *(block.flatten(1) for block in wide))
        return tuple(part.unflatten(1, (-1, size)) for part in out), 2

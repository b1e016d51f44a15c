"""Does an operator keep its contract? Plain sentences for what it does not."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.solvers.operator import LinearOperator, as_operator
from detjac_lanczos.solvers.options import check_seed
from detjac_lanczos.solvers.product_fault import product_fault
from detjac_lanczos.solvers.rounding import (
    LARGEST_ADJOINT_BOUND,
    adjoint_bound,
    epsilon,
    epsilon_at,
    safe_scale,
    unless_coarser,
)

_WIDTH = 3


@dataclass(frozen=True)
class OperatorReport:
    """What :func:`check_operator` found.

    Attributes
    ----------
    problems : tuple of str
        One sentence for each broken part of the contract; empty for a sound operator.
    adjoint_defect : float
        max |⟨A v, u⟩ - ⟨v, Aᵀ u⟩| / (a min(‖u‖, ‖v‖)) over standard normal u and v, where a is the largest ‖A v‖ or
        ‖Aᵀ u‖, about ‖A‖_F; NaN where products could not be compared.
    adjoint_bound : float
        What rounding explains of it, c ε √rows, and more where products are so small that they lose digits.
    """

    problems: tuple[str, ...]
    adjoint_defect: float
    adjoint_bound: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        """Return the problems, one a line."""
        if self.ok:
            return f"ok: adjoint to {self.adjoint_defect:.1e}, rounding explains {self.adjoint_bound:.1e}"
        return "\n".join(self.problems)


def check_operator(A: Any, seed: int = 0) -> OperatorReport:
    """Test an operator's shapes, finiteness, determinism, linearity and adjointness on random blocks.

    Parameters
    ----------
    A : LinearOperator, or what :func:`as_operator` takes
    seed : int
        From 0 to 2³² - 1.

    Returns
    -------
    OperatorReport

    Raises
    ------
    InputError
        ``A`` is no real linear operator at all, or ``seed`` is none.
    """
    operator = as_operator(A)
    check_seed(seed)
    with torch.no_grad(), torch.autocast(torch.device(operator.device).type, enabled=False):
        return _check(operator, seed)


def _check(operator: LinearOperator, seed: int) -> OperatorReport:
    d_out, d_in = operator.shape
    if min(d_out, d_in) < 1:
        empty = f"an operator of shape ({d_out}, {d_in}) has no products to test: give one with 1 or more each way"
        return OperatorReport((empty,), float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(int(seed))
    V, U = (_random(rows, operator, generator) for rows in (d_in, d_out))
    AV, forward = _check_way("matmat", operator.matmat, V, d_out, operator)
    AtU, transposed = _check_way("rmatmat", operator.rmatmat, U, d_in, operator)
    problems = forward + transposed
    if AV is None or AtU is None:
        return OperatorReport(tuple(problems), float("nan"), adjoint_bound(epsilon(operator.dtype), max(d_out, d_in)))
    unit = safe_scale(torch.cat([AV, AtU]))
    AV, AtU, U, V = AV * unit, AtU * unit, U.to(torch.float64), V.to(torch.float64)
    # What is lost to the smallest numbers averages out in inner products with random vectors: no more is excused.
    bound = min(_bound(operator, torch.cat([AV, AtU]), unit), LARGEST_ADJOINT_BOUND)
    # One product alone may be short by chance, as that of a single row is, and its rounding is not shorter.
    length = torch.cat([AV.norm(dim=0), AtU.norm(dim=0)]).max().clamp_min(torch.finfo(torch.float64).tiny)
    shorter = torch.minimum(U.norm(dim=0)[:, None], V.norm(dim=0)[None, :])
    defect = float(((U.T @ AV - AtU.T @ V).abs() / (length * shorter)).max())
    if defect > bound:
        problems.append(
            f"rmatmat is not the transpose of matmat: ⟨A v, u⟩ and ⟨v, Aᵀ u⟩ differ by {defect:.1e} of ‖A‖_F times "
            f"the shorter of u and v, rounding explains {bound:.1e}"
            # Inner products with random vectors are about so much of the largest that they could be.
            + unless_coarser(operator.dtype, defect * math.sqrt(min(operator.shape)), max(operator.shape))
        )
    return OperatorReport(tuple(problems), defect, bound)


class _UnusableError(Exception):
    """A product of which nothing more can be tested."""


def _check_way(
    name: str, apply: Callable[[Tensor], Tensor], block: Tensor, rows: int, operator: LinearOperator
) -> tuple[Tensor | None, list[str]]:
    """Return the product in float64, None where one is unusable, and what is wrong with it."""
    problems: list[str] = []

    def product(sent: Tensor) -> Tensor:
        return _product(name, apply, sent, rows, operator)

    try:
        first = product(block)
        unit = safe_scale(first)
        scaled = first * unit
        # Half of it where twice the product might overflow.
        factor = -2.0 if float(first.abs().max()) < torch.finfo(operator.dtype).max / 4.0 else -0.5
        size, bound = float(scaled.norm()), _bound(operator, scaled, unit)
        if float((product(block) * unit - scaled).norm()) > bound * size:
            problems.append(f"{name} is not deterministic: the same block gave two different products")
        elif (apart := float((product(block[:, :1]) * unit - scaled[:, :1]).norm())) > bound * size:
            other = unless_coarser(operator.dtype, apart / size, max(operator.shape))
            problems.append(f"{name} is not the same column by column: a column alone gives another product{other}")
        elif float((product(factor * block) * unit - factor * scaled).norm()) > abs(factor) * bound * size:
            problems.append(f"{name} is not linear: {factor:g} times a block does not give so many times its product")
    except _UnusableError as unusable:
        return None, [str(unusable)]
    return first, problems


def _product(
    name: str, apply: Callable[[Tensor], Tensor], block: Tensor, rows: int, operator: LinearOperator
) -> Tensor:
    """Return a copy of the product in float64, or raise :class:`_UnusableError` with what is wrong with it."""
    try:
        found = apply(block.clone())  # as solves send it: an operator may compute in the block
    except Exception as error:
        failed = f"{name} failed on a block of shape {tuple(block.shape)} and strides {block.stride()}"
        raise _UnusableError(f"{failed}: {type(error).__name__}: {error}") from error
    if fault := product_fault(found, (rows, block.shape[1]), operator.dtype, torch.device(operator.device)):
        raise _UnusableError(f"the product of {name} is {fault}")
    if not bool(torch.isfinite(found).all()):
        raise _UnusableError(f"{name} returned NaN or infinite values for finite input")
    return found.to(torch.float64, copy=True)


def _bound(operator: LinearOperator, products: Tensor, unit: float) -> float:
    """Return what rounding explains of products that are given times ``unit``, relative to their length."""
    eps = epsilon_at(operator.dtype, float(products.norm()) / unit, products.numel())
    return adjoint_bound(eps, max(operator.shape))


def _random(rows: int, operator: LinearOperator, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(rows, _WIDTH, dtype=torch.float64, device="cpu", generator=generator)
    return drawn.to(device=operator.device, dtype=operator.dtype)

"""What each token adds to the output, J_i x_i, and how much of it the leading triplets reproduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import JacobianBatch
from detjac_lanczos.solvers.batch import Subset
from detjac_lanczos.solvers.chunks import CHUNK_ROWS
from detjac_lanczos.solvers.options import check_seed
from detjac_lanczos.solvers.streams import Stream

PROBES = 16
"""Random cotangents of an estimate: its work is this many times ``batch.shared_cost()``, and once more per prompt."""


class Triplets(Protocol):
    """Singular triplets of one operator: U (d_out, k), S (k,), V (d_in, k)."""

    @property
    def U(self) -> Tensor:
        """Left vectors, (d_out, k)."""

    @property
    def S(self) -> Tensor:
        """Values, (k,)."""

    @property
    def V(self) -> Tensor:
        """Right vectors, (d_in, k)."""


@dataclass(frozen=True)
class Contribution:
    """One token's part of y = Σ J_i x_i + r.

    Attributes
    ----------
    share : float
        ‖J_i x_i‖ / ‖y‖. Shares do not sum to 1: contributions may cancel.
    cosine : float
        Cosine of J_i x_i with y.
    captured : float
        1 − ‖J_i x_i − U S Vᵀ x_i‖² / ‖J_i x_i‖²: the share of its squared length that the k triplets reproduce. For
        exact triplets U S Vᵀ x is the projection of J x on the left vectors, and this is ‖U S Vᵀ x‖² / ‖J x‖².
    """

    share: float
    cosine: float
    captured: float


def contributions(batch: JacobianBatch, triplets: Sequence[Triplets]) -> list[Contribution]:
    """Measure every token's contribution, with one forward sweep of one column per operator.

    Parameters
    ----------
    batch : JacobianBatch
    triplets : sequence of Triplets
        One per operator, in its order: an `SVDResult` or anything with U, S and V.

    Returns
    -------
    list of Contribution

    Raises
    ------
    InputError
        If ``batch`` is no batch of Jacobians, or the triplets are not one for each operator.

    References
    ----------
    J. Golden, "Large Language Models are Locally Linear Mappings", 2025: the singular vectors of J_i carry J_i x_i.
    """
    check_triplets(batch, triplets)
    inputs = [operator.x for operator in batch.operators]
    products = Subset(batch, range(len(batch)), CHUNK_ROWS).matmat(
        [(i, x[:, None].contiguous()) for i, x in enumerate(inputs)]
    )
    return [
        _measured(product[:, 0], x, operator.y, found)
        for product, x, operator, found in zip(products, inputs, batch.operators, triplets, strict=True)
    ]


def estimate_contributions(batch: JacobianBatch, triplets: Sequence[Triplets], *, seed: int = 0) -> list[Contribution]:
    """Estimate every token's contribution from cotangents that all operators share, n rows a column.

    U S Vᵀ x is exact, for the triplets of a survey: U spans UUᵀJ x. The rest of ‖J x‖² is the mean of
    ((ω − UUᵀω)ᵀ J x)² over standard normal ω, without bias, and ⟨y, J x⟩ comes from y as a cotangent.

    Parameters
    ----------
    batch : JacobianBatch
    triplets : sequence of Triplets
        One per operator, with UᵀJ = S Vᵀ.
    seed : int
        From 0 to 2³² - 1.

    Returns
    -------
    list of Contribution
        Lengths (``share``, and what follows from it) are estimates.

    Raises
    ------
    InputError
        As in `contributions`, or if ``seed`` is none.
    """
    check_triplets(batch, triplets)
    check_seed(seed)
    generator = Stream.CONTRIBUTION.generator(seed)
    Omega = torch.randn(batch.shapes[0][0], PROBES, generator=generator, dtype=torch.float64, device="cpu")
    outputs = {operator.prompt: operator.y for operator in batch.operators}
    Y = torch.stack([y.to(batch.device, batch.dtype) for y in outputs.values()], dim=1)
    images = batch.rmatmat_shared(torch.cat([Omega.to(Y), Y], dim=1))
    found = []
    for operator, image, own in zip(batch.operators, images, triplets, strict=True):
        pulled = image.double()
        x, y = operator.x.to(pulled), operator.y.to(pulled)
        U, S, V = (part.to(pulled) for part in (own.U, own.S, own.V))
        inside = S * (V.T @ x)
        sketch = pulled[:, :PROBES].T @ x - (U.T @ Omega.to(U)).T @ inside
        known, total = float(inside.square().sum()), float(y.norm())
        length = math.sqrt(known + float(sketch.square().mean()))
        along = float(pulled[:, PROBES + list(outputs).index(operator.prompt)] @ x)
        cosine = along / (length * total) if length * total else 0.0
        found.append(
            Contribution(
                share=length / total if total else 0.0,
                cosine=max(-1.0, min(1.0, cosine)),
                captured=known / length**2 if length else 1.0,
            )
        )
    return found


def check_triplets(batch: JacobianBatch, triplets: Sequence[Triplets]) -> None:
    """Raise `InputError` for what is no batch, and for triplets that are not one for each of its operators."""
    if not hasattr(batch, "rmatmat_shared"):
        raise InputError(f"got a {type(batch).__name__}: give a JacobianBatch, as network.jacobians(...) does")
    if not isinstance(triplets, Sequence):
        raise InputError(f"triplets are a {type(triplets).__name__}: give a list with one for each operator")
    if len(triplets) != len(batch.shapes):
        raise InputError(f"{len(triplets)} triplets for {len(batch.shapes)} operators: give one for each")


def _measured(product: Tensor, x: Tensor, y: Tensor, triplets: Triplets) -> Contribution:
    """Return what ``product``, J x, is of y, and the triplets of J of it."""
    Jx, value = product.double(), y.double()
    U, S, V = (part.to(Jx) for part in (triplets.U, triplets.S, triplets.V))
    missed = Jx - U @ (S * (V.T @ x.to(Jx)))
    length, total = float(Jx.norm()), float(value.norm())
    return Contribution(
        share=length / total if total else 0.0,
        cosine=float(Jx @ value) / (length * total) if length * total else 0.0,
        captured=1 - (float(missed.norm()) / length) ** 2 if length else 1.0,
    )

"""The certificate: the TRIPLETS claim, made of measured quantities only, and that of completeness."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detjac_lanczos.solvers.basis import orthonormality_loss, spectral_norm
from detjac_lanczos.solvers.clusters import clusters
from detjac_lanczos.solvers.completeness import Completeness
from detjac_lanczos.solvers.residuals import are_zeros, relative_residuals
from detjac_lanczos.solvers.rounding import safe_scale
from detjac_lanczos.solvers.wording import rounded_up

LARGEST_LOSS = 0.1
"""Of orthonormality, ‖Vᵀ V - I‖₂, with which triplets are claimed: up to here ‖(Vᵀ V)^{-1/2} - I‖₂ is at most 0.55 of
it, so that ``radius`` covers what the nearest orthonormal vectors change. Vectors further away may be one twice."""


@dataclass(frozen=True)
class Cluster:
    """Values that their residuals cannot tell apart: one invariant subspace rather than separate vectors.

    Attributes
    ----------
    indices : tuple of int
        Of the triplets as they were given, ascending; neighbours where S is descending.
    residual : float
        max(‖A V - U S‖₂, ‖Aᵀ U - V S‖₂) over the group, absolute.
    """

    indices: tuple[int, ...]
    residual: float


@dataclass(frozen=True, repr=False)
class Certificate:
    """TRIPLETS: A has ``claimed`` distinct singular values, one within ``radius`` of each claimed s_i.

    Distinct counts multiplicity. Deterministic, about the operator as computed. The j-th singular value is moreover at
    least the j-th largest s, less rounding, where these are Ritz values, as in the results of a solve; of triplets from
    elsewhere it is at least that less ``radius``.

    Attributes
    ----------
    k, claimed : int
        Triplets asked for, and how many meet ``tol`` or, of a spectrum known as a whole, are those of zeros to
        rounding; none where the vectors are not orthonormal to 0.1.
    tol : float
        The bound on max(ρ_R, ρ_L) / σ_j that a claimed triplet meets.
    residual : float
        The largest of these among the claimed triplets.
    e_k : float
        max(‖A V - U S‖₂, ‖Aᵀ U - V S‖₂) over the claimed triplets.
    orthonormality : tuple of float
        ‖Uᵀ U - I‖₂ and ‖Vᵀ V - I‖₂.
    adjoint_defect : float
        ‖Uᵀ (A V) - (Aᵀ U)ᵀ V‖₂ / σ_1: how far the two directions are from being transposes of each other.
    floor : float
        c ε σ_1 √passes: what rounding of the operator alone can do.
    clusters : tuple of Cluster
    sigma_1 : float
    completeness : Completeness or None
        The second claim, where it was asked for: nothing larger was missed.

    Notes
    -----
    Source: residual bound of [0 A; Aᵀ 0] for a block, Parlett, The Symmetric Eigenvalue Problem, 11.5.
    """

    k: int
    claimed: int
    tol: float
    residual: float
    e_k: float
    orthonormality: tuple[float, float]
    adjoint_defect: float
    floor: float
    clusters: tuple[Cluster, ...]
    sigma_1: float
    completeness: Completeness | None = None

    @property
    def radius(self) -> float:
        """``e_k`` plus what the measured loss of orthonormality and adjointness can add."""
        return self.e_k + self.sigma_1 * (sum(self.orthonormality) + self.adjoint_defect)

    @property
    def line(self) -> str:
        """What is claimed, in one line."""
        triplets = f"TRIPLETS {self.claimed}/{self.k}"
        if self.claimed:
            triplets += f", residual ≤ {rounded_up(self.residual)}"
        if max(self.orthonormality) > LARGEST_LOSS:
            triplets += ", the vectors are not orthonormal"
        return triplets if self.completeness is None else f"{triplets} · {self.completeness.line}"

    def __repr__(self) -> str:
        """Return what is claimed, in one line."""
        return f"Certificate({self.line})"


def certify_triplets(
    U: Tensor,
    S: Tensor,
    V: Tensor,
    AV: Tensor,
    AtU: Tensor,
    *,
    tol: float,
    floor: float,
    exact: bool = False,
    scale: float = 1.0,
    least: float = 0.0,
    mismatch: Tensor | None = None,
) -> tuple[Tensor, Certificate]:
    """Measure triplets against products of the operator and state what they prove.

    It is done in float64, one side after the other: vectors of a long prompt are large, and only residuals are held.

    Parameters
    ----------
    U, AV : Tensor, shape (d_out, k)
    S : Tensor, shape (k,)
    V, AtU : Tensor, shape (d_in, k)
    tol : float
    floor : float
        What rounding of the operator alone can do, absolute.
    exact : bool
        The whole spectrum is known: values under the floor are zeros of the operator, and claimed as such, where that
        floor is within ``tol`` of σ_1.
    scale : float
        What the products are of: this times the operator.
    least : float
        What products lose where their type has no smaller numbers: a smaller residual is not claimed.
    mismatch : Tensor, shape (k,), optional
        What each A v and Aᵀ u may be away from those given, absolute: a part of their residuals.

    Returns
    -------
    residuals : Tensor, shape (k, 2), float64
        ρ_R and ρ_L, absolute.
    certificate : Certificate
    """
    sigma = S.to(torch.float64)
    # In units in which squares neither overflow nor vanish: a residual of zero must mean zero.
    unit = safe_scale(sigma)
    sigma, floor = sigma * unit, floor * unit
    top = float(sigma.max()) if len(sigma) else 0.0
    vectors, products = _in_double(U, AV, scale, unit)
    right_gram, right_defect = vectors.T @ products, orthonormality_loss(vectors.T)
    right = products.sub_(vectors.mul_(sigma))
    del vectors, products
    vectors, products = _in_double(V, AtU, scale, unit)
    left_gram, left_defect = products.T @ vectors, orthonormality_loss(vectors.T)
    left = products.sub_(vectors.mul_(sigma))
    del vectors, products
    unseen = torch.zeros_like(sigma) if mismatch is None else mismatch.to(sigma) * unit
    residuals = torch.stack([torch.hypot(block.norm(dim=0), unseen) for block in (right, left)], dim=1)
    worst = residuals.amax(dim=1)
    met = (worst <= tol * sigma) & (tol * sigma >= least * unit)
    if exact:
        met |= are_zeros(sigma, worst, floor, tol, top)
    relative = relative_residuals(worst, sigma, floor, top)
    met &= max(right_defect, left_defect) <= LARGEST_LOSS
    adjoint = spectral_norm(right_gram - left_gram)
    certificate = Certificate(
        k=len(sigma),
        claimed=int(met.sum()),
        tol=tol,
        residual=float(relative[met].max()) if bool(met.any()) else 0.0,
        e_k=math.hypot(max(_norm(right, met), _norm(left, met)), float(unseen[met].norm())) / unit,
        orthonormality=(right_defect, left_defect),
        adjoint_defect=adjoint / top if top > 0 else 0.0,
        floor=floor / unit,
        clusters=_clusters(sigma, worst, right, left, unit),
        sigma_1=top / unit,
    )
    return residuals / unit, certificate


def _in_double(vectors: Tensor, products: Tensor, scale: float, unit: float) -> tuple[Tensor, Tensor]:
    """Return copies in float64, the products in units of the operator times ``unit``."""
    vectors, products = (block.to(torch.float64, copy=True) for block in (vectors, products))
    return vectors, products.div_(scale).mul_(unit)


def _norm(block: Tensor, chosen: Tensor) -> float:
    return spectral_norm(block if bool(chosen.all()) else block[:, chosen])


def _clusters(sigma: Tensor, worst: Tensor, right: Tensor, left: Tensor, unit: float) -> tuple[Cluster, ...]:
    order = sigma.argsort(descending=True, stable=True)
    groups = [sorted(order[group].tolist()) for group in clusters(sigma[order].tolist(), worst[order].tolist())]
    return tuple(
        Cluster(tuple(group), max(spectral_norm(_columns(block, group)) for block in (right, left)) / unit)
        for group in groups
        if len(group) > 1
    )


def _columns(block: Tensor, group: list[int]) -> Tensor:
    """Return columns, in ascending order; neighbours as a view, since residuals of a long prompt are large."""
    first, end = group[0], group[-1] + 1
    return block[:, first:end] if end - first == len(group) else block[:, group]

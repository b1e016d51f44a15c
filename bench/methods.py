"""Methods for the top k singular triplets of every token, each from the model to (U, S, V) per token."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import detjac_lanczos as dl
from bench.dense_autograd import dense_jacobians, detached_model, embed
from bench.propack import singular_values, token_operator
from detjac_lanczos.operators import JacobianBatch

Triplets = list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Job:
    """A model, its prompt and the number of triplets."""

    model: Any
    ids: list[int]
    k: int = 8
    tol: float = 1e-3

    @cached_property
    def loaded(self) -> dl.LoadedModel:
        """The model with its weights checked: once, as when a user loads it, and in no method's time."""
        return dl.load_model(self.model)

    def jacobians(self) -> JacobianBatch:
        """Return the Jacobian of every token."""
        return dl.detach(self.loaded, input_ids=self.ids).jacobians()


def ours(job: Job, method: str) -> tuple[Triplets, list[Any]]:
    """`detach` and the lockstep solver."""
    results = dl.svd_batch(job.jacobians(), k=job.k, tol=job.tol, method=method)
    return [(r.U, r.S, r.V) for r in results], results


def autograd(job: Job) -> Triplets:
    """Dense J by vectorised reverse mode, then an SVD per token (one after another, faster than batched on CPU)."""
    twin = detached_model(job.model)
    jacobians = dense_jacobians(twin, embed(job.model, job.ids), chunk=192)
    triplets = []
    for jacobian in jacobians:
        u, s, vt = torch.linalg.svd(jacobian, full_matrices=False)
        triplets.append((u[:, : job.k], s[: job.k], vt[: job.k].T))
    return triplets


def glued(job: Job, tokens: list[int], tol: float) -> Triplets:
    """PROPACK on jvp and vjp of the detached modules, one token after another."""
    twin, embeds = detached_model(job.model), embed(job.model, job.ids)
    triplets = []
    for token in tokens:
        u, s, v = singular_values(token_operator(twin, embeds, token), job.k, tol)
        triplets.append((torch.from_numpy(u.copy()), torch.from_numpy(s.copy()), torch.from_numpy(v.copy())))
    return triplets


def residual(jacobian: Tensor, triplet: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the largest true relative residual of the triplets: max over j of max(ρ_R, ρ_L)/σ_j."""
    u, s, v = (t.double() for t in triplet)
    j = jacobian.double()
    right, left = (j @ v - u * s).norm(dim=0), (j.T @ u - v * s).norm(dim=0)
    return float((torch.maximum(right, left) / s).max())


def value_error(jacobian: Tensor, triplet: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the largest relative error of the singular values against a dense float64 SVD."""
    true = torch.linalg.svdvals(jacobian.double())[: len(triplet[1])]
    return float(((triplet[1].double() - true) / true).abs().max())

"""Detached Jacobians of the embedded models, written out: real spectra for the counts."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

import detjac_lanczos as dl
from bench.cases import Case, Problem
from detjac_lanczos.operators import JacobianBatch

PROMPT = "The bridge out of Marin is the"
MODELS = ("smollm2", "gemma3-270m")


@cache
def jacobians(model: str) -> tuple[Tensor, ...]:
    """Return J of every token of the standard prompt, float32, each (d, d).

    Raises
    ------
    DetjacError
        If the model's package is not installed.
    """
    return written_out(dl.detach(dl.load_model(model), PROMPT).jacobians())


def written_out(batch: JacobianBatch) -> tuple[Tensor, ...]:
    """Return every matrix of a batch, (d_out, d_in), by cotangents that its operators share."""
    eye = torch.eye(batch.shapes[0][0], dtype=batch.dtype)
    parts = [batch.rmatmat_shared(part) for part in eye.split(192, dim=1)]
    return tuple(torch.cat(rows, dim=1).T for rows in zip(*parts, strict=True))


class Widened:
    """(1/r) 11ᵀ ⊗ J: the Jacobian of a model whose every feature space is tiled r times, with the values of J."""

    def __init__(self, matrix: Tensor, r: int) -> None:
        self.matrix, self.r = matrix, r
        self.shape = (matrix.shape[0] * r, matrix.shape[1] * r)
        self.dtype, self.device = matrix.dtype, matrix.device

    def matmat(self, X: Tensor) -> Tensor:
        """(r d_in, b) to (r d_out, b)."""
        return self._tiled(self.matrix, X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """(r d_out, b) to (r d_in, b)."""
        return self._tiled(self.matrix.T, Y)

    def _tiled(self, matrix: Tensor, block: Tensor) -> Tensor:
        mean = block.view(self.r, matrix.shape[1], -1).mean(dim=0)
        return (matrix @ mean).repeat(self.r, 1)


def real_problems() -> dict[str, Callable[[Case, int], Problem]]:
    """Return a maker of problems for every embedded model that is installed, by its name.

    Tokens take turns by the seed; every other seed takes the widened Jacobian. Where the tolerance is finer than
    float32, the matrix is taken as exact in float64.
    """
    found = {}
    for model in MODELS:
        try:
            matrices = jacobians(model)
        except dl.DetjacError as error:
            print(f"{model} left out: {error}")
            continue
        found[model] = _maker(matrices, [torch.linalg.svdvals(matrix.double()).numpy() for matrix in matrices])
    return found


def _maker(matrices: tuple[Tensor, ...], values: list[np.ndarray]) -> Callable[[Case, int], Problem]:
    def make(case: Case, seed: int) -> Problem:
        index = seed % len(matrices)
        matrix = matrices[index].to(torch.float64 if case.tol < 1e-4 else torch.float32)
        width = 1 + seed // len(matrices) % 2
        exact = np.concatenate([values[index], np.zeros((width - 1) * len(values[index]))])
        return Problem(Widened(matrix, width), Widened(matrix.double(), width), exact)

    return make

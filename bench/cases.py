"""What is counted: made-up spectra and what becomes of them, by the seed, as operators with known singular values."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.spectral_operator import SpectralOperator
from tests.solvers.spectra import spectrum

PLAIN = ("geometric", "harmonic", "root", "spike", "flat", "cluster", "multiple", "staircase", "graded", "gap")
SPECTRA = (*PLAIN, "rank 3", "rank k", "zero", "duplicates", "hidden")
KS = (1, 8, 20)
TOLERANCES = (1e-3, 1e-6)
WIDTHS = (1, 2, 4, 8)
_SMALLEST, _LARGEST = 64, 600
_SCALES = (1.0, 1e-30, 1e30)
_MULTIPLICITY = 10
"""Of the duplicates: above every width."""


@dataclass(frozen=True)
class Case:
    """One line of the count: what is solved and how, over all seeds."""

    spectrum: str
    k: int
    tol: float
    width: int

    @property
    def name(self) -> str:
        """The key of the case in the record."""
        return f"{self.spectrum} | k {self.k} | tol {self.tol:g} | width {self.width}"


@dataclass(frozen=True)
class Problem:
    """An operator as the solver gets it and in float64, its exact singular values, and vectors to start from."""

    operator: Any
    exact_operator: Any
    exact: np.ndarray
    start: Tensor | None = None


def cases(spectra: tuple[str, ...] = SPECTRA) -> Iterator[Case]:
    """Yield every case of these spectra."""
    for name in spectra:
        for k in KS:
            for tol in TOLERANCES:
                for width in WIDTHS:
                    yield Case(name, k, tol, width)


def make_problem(case: Case, seed: int, largest: int = _LARGEST) -> Problem:
    """Draw the size, shape, scale and precision of a synthetic case by its seed, and build the operator.

    Half of the sizes are below 85, and one in nine is above 300, so that there is time for many.
    """
    generator = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
    size = round(_SMALLEST * (largest / _SMALLEST) ** (generator.random() ** 3))
    shape = [(size, size), (2 * size, size), (size, 2 * size)][generator.integers(3)]
    scale = _SCALES[generator.integers(3)]
    dtype = torch.float64 if case.tol < 1e-4 or generator.integers(2) else torch.float32
    operator = SpectralOperator(scale * values_of(case, size), shape, int(generator.integers(2**31)), dtype)
    start = None
    if case.spectrum == "hidden":
        # The leading right vectors but one: the search is content at once, with the wrong set.
        known = [j for j in range(case.k + 1) if j != case.k // 2]
        start = operator.right_vectors(known)
    return Problem(operator, operator.double(), np.abs(operator.double()._diagonal[:, 0].numpy()), start)


def values_of(case: Case, size: int) -> np.ndarray:
    """Return the singular values of a synthetic case, descending."""
    if case.spectrum in PLAIN:
        return spectrum(case.spectrum, size, case.k if case.k > 4 else 8)
    values = spectrum("root", size)
    rank = {"rank 3": 3, "rank k": case.k, "zero": 0}.get(case.spectrum)
    if rank is not None:
        values = np.where(np.arange(size) < rank, values, 0.0)
    if case.spectrum == "duplicates":
        first = case.k // 2
        values[first : first + _MULTIPLICITY] = values[first]
    return values

"""What a solve returns: vectors, residuals, how it ended and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from detjac_lanczos.by_value import sent_by_value
from detjac_lanczos.errors import InputError
from detjac_lanczos.solvers.certificate import Certificate
from detjac_lanczos.solvers.missed import Missed
from detjac_lanczos.solvers.residuals import relative_residuals
from detjac_lanczos.solvers.wording import values_in_line


class Status(Enum):
    """How a solve ended. Only CONVERGED and BREAKDOWN_EXACT are successes; an ESTIMATE claims nothing.

    BREAKDOWN_EXACT: every singular value beyond those returned is zero, or under the noise floor, as a space that is
    known as a whole shows; where the search ended before, as far as random vectors tell.
    """

    CONVERGED = "converged"
    BREAKDOWN_EXACT = "breakdown_exact"
    NOISE_FLOOR = "noise_floor"
    BUDGET = "budget"
    NOT_FINITE = "not_finite"
    NOT_ADJOINT = "not_adjoint"
    NOT_DETERMINISTIC = "not_deterministic"
    ESTIMATE = "estimate"

    @property
    def successful(self) -> bool:
        """Whether every triplet asked for was found."""
        return self in (Status.CONVERGED, Status.BREAKDOWN_EXACT)

    @property
    def ended_well(self) -> bool:
        """Whether the search went as far as the precision lets it: nothing that it knows of lies between the values."""
        return self.successful or self is Status.NOISE_FLOOR


@dataclass(frozen=True)
class Work:
    """What a solve cost one operator, counted.

    Attributes
    ----------
    products_forward, products_transposed : int
        Columns sent through A and through Aᵀ.
    passes : int
        Sweeps that the operator took part in.
    row_sweeps : float
        Rows sent through all layers.
    seconds : float
        From the start of the solve (of the whole batch) to this operator's end; passes that a checkpoint held count
        as long as they took.
    probe_products : int
        Columns of these that went into probes for completeness.
    """

    products_forward: int
    products_transposed: int
    passes: int
    row_sweeps: float
    seconds: float
    probe_products: int = 0

    @property
    def products(self) -> int:
        """Columns both ways."""
        return self.products_forward + self.products_transposed


@sent_by_value()
@dataclass(frozen=True, eq=False, repr=False)
class Guards:
    """Further triplets that a claim of completeness rests on, converged less far than those asked for.

    Attributes
    ----------
    U, S, V : Tensor, shape (d_out, g), (g,) descending, (d_in, g)
    """

    U: Tensor
    S: Tensor
    V: Tensor

    def __repr__(self) -> str:
        """Return one line: size and values."""
        return f"Guards({self.U.shape[0]} × {self.V.shape[0]}, S=[{values_in_line(self.S)}])"


@sent_by_value("missed")
@dataclass(frozen=True, eq=False, repr=False)
class SVDResult:
    """Leading singular triplets of one operator A (d_out × d_in), with what is known about them.

    Attributes
    ----------
    U, S, V : Tensor, shape (d_out, k), (k,) descending, (d_in, k)
        NaN where the operator was refused before any triplet was known.
    residuals : Tensor, shape (k, 2), float64
        ρ_R = ‖A v - σ u‖ and ρ_L = ‖Aᵀ u - σ v‖, absolute, measured from products; NaN where that was not done.
        Those of a matrix that was written out stand for them where their mismatch, which is a part of both, is
        negligible for ``tol``, or where ``max_products`` leaves no others.
    certificate : Certificate or None
        The TRIPLETS claim; None when it was not asked for or nothing was found, and of estimates.
    status : Status
    advice : str
        What the status means and what to do about it; a sentence, or several.
    work : Work
    method, why : str
        The method taken, and the reason for it.
    choices : dict
        Every decision that was made, by counts or by timing, and what was asked for in its place, as plain data; pass
        it back as ``choices=`` to repeat the solve.
    floor : float
        c ε σ₁ √passes: residuals below it are rounding. ε is that of the operator's type, or more where its products
        are so small that they lose digits. 0 where all products are zero: ``advice`` says what those may hide.
    missed : Missed or None
        What a survey's shared basis lacks of this operator; None by every other method.
    guards : Guards or None
        What was deflated beside the triplets where completeness is claimed.
    energy : (float, float) or None
        Interval of the share of ‖A‖_F² that the triplets hold, where a share was asked for: 95 %, or exact where the
        matrix was written out.
    widened : tuple of (int, int)
        Passes in which Lanczos blocks were widened to look for further copies of a cluster's value, and by how many
        random columns.
    error : float or None
        Leave-one-out estimate of ‖A - U S Vᵀ‖_F, of the randomised method; an estimate has no bound.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    certificate: Certificate | None
    status: Status
    advice: str
    work: Work
    method: str
    why: str
    choices: dict[str, Any]
    floor: float
    missed: Missed | None = None
    guards: Guards | None = None
    energy: tuple[float, float] | None = None
    widened: tuple[tuple[int, int], ...] = ()
    error: float | None = None

    @property
    def relative(self) -> Tensor:
        """Residuals by σ_j, and by σ_1 where σ_j is under the floor; ``(k, 2)``, float64, NaN where those are."""
        first = float(self.S.max()) if len(self.S) else 0.0
        return relative_residuals(self.residuals, self.S, self.floor, first)

    @property
    def converged(self) -> bool:
        """Whether every triplet asked for was found."""
        return self.status.successful

    def __repr__(self) -> str:
        """Return one line: size, values, how it ended, what is claimed and what it cost."""
        d_out, k, d_in = self.U.shape[0], len(self.S), self.V.shape[0]
        claim = "no certificate" if self.certificate is None else self.certificate.line
        work = f"{self.work.products} products in {self.work.passes} passes by {self.method}"
        values = values_in_line(self.S)
        error = "" if self.error is None else f"|A - U S Vᵀ|_F ≈ {self.error:.2g} (estimate), "
        return f"SVDResult({d_out} × {d_in}, k={k}, {self.status.value}, S=[{values}], {claim}, {error}{work})"


def check_results(results: Sequence[SVDResult]) -> None:
    """Raise :class:`InputError` for what is no list of results."""
    if not isinstance(results, Sequence):
        raise InputError(f"results are a {type(results).__name__}: give a list with one for each operator")
    for index, result in enumerate(results):
        if not isinstance(result, SVDResult):
            raise InputError(f"result {index} is a {type(result).__name__}: give what svd or svd_batch returned")

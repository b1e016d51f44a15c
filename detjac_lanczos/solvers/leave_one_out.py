"""What a randomised basis leaves of an operator, estimated from the very samples that made it."""

import torch
from torch import Tensor


class LeaveOneOut:
    """The leave-one-out estimate of the Frobenius error of a randomised SVD, at no product of its own.

    Let Ω have s independent standard normal rows ω_i, and let the rows of Z = Ω A (Aᵀ A)^q, made orthonormal, be T: the
    basis of subspace iteration, and of the randomised SVD where q = 0. T_(i) is the basis that the other samples make,
    without ω_i. It knows nothing of ω_i, and E ω_iᵀ ω_i = I, so that

        Err² = 1/s Σ_i ‖Aᵀ ω_i - T_(i)ᵀ T_(i) Aᵀ ω_i‖²,     E Err² = E ‖A - A T_(1)ᵀ T_(1)‖_F²:

    an unbiased estimate of the squared error of a basis of s - 1 samples. It has no bound of its tail: an *estimate*,
    never a claim.

    No basis is made again. With Z = M T, a unit vector t_i with M t_i ∝ e_i (the i-th column of M⁻¹) is orthogonal to
    every row of M but the i-th: the space of T_(i) is that of T less t_iᵀ T. With y_i = Aᵀ ω_i as a row, hence

        ‖y_i - y_i T_(i)ᵀ T_(i)‖² = ‖y_i - y_i Tᵀ T‖² + (y_i Tᵀ t_i)².

    For q = 0, y_i is the i-th row of M T: the first term is zero and the second 1 / ‖M⁻¹ e_i‖². M is a product of the
    triangular factors of all orthonormalisations on the way. The columns of M⁻¹ are made one factor after another and
    kept at unit length, so that M itself, which is ill-conditioned after a few passes, is never formed.

    Source: Epperly, Tropp, "Efficient error and variance estimation for randomized matrix computations", SIAM J. Sci.
    Comput. 46, 2024, for q = 0; its chain of factors for q > 0 is the same argument.

    Parameters
    ----------
    factor : Tensor, shape (s, s)
        L of Ω = L C, where C are the orthonormal rows that were sent in the place of Ω.
    products : Tensor, shape (s, d_in)
        C A, row by row.
    """

    def __init__(self, factor: Tensor, products: Tensor) -> None:
        self._samples = factor.double() @ products.double()
        self._duals = torch.eye(factor.shape[0], dtype=torch.float64, device=factor.device)
        self.follow(factor)

    def follow(self, factor: Tensor) -> None:
        """Take L ``(s, s)``, lower triangular, of the next rows = L @ orthonormal rows."""
        factor = factor.double()
        largest = float(factor.abs().max())
        if largest == 0.0:
            return
        diagonal = factor.diagonal()
        # Rounding on the diagonal says that the samples before span this one: any t beyond them will do.
        least = torch.full_like(diagonal, torch.finfo(torch.float64).eps * largest)
        raised = torch.where(diagonal.abs() > least, diagonal, least)
        duals = torch.linalg.solve_triangular(factor.tril(-1) + torch.diag(raised), self._duals, upper=False)
        duals = duals / duals.abs().amax(dim=0)
        self._duals = duals / duals.norm(dim=0)

    def squared(self, basis: Tensor) -> float:
        """Return Err², in the units of the products squared.

        Parameters
        ----------
        basis : Tensor, shape (s, d_in)
            T, whose factor was followed last.
        """
        basis = basis.double()
        inside = self._samples @ basis.T
        outside = (self._samples - inside @ basis).square().sum()
        return float(outside + (inside * self._duals.T).sum(dim=1).square().sum()) / len(inside)

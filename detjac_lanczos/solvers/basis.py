"""Growing stores of row vectors, and blocks of rows made orthonormal to them."""

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

_PROJECTIONS = 4
_MOSTLY_OUTSIDE = 0.5
_ZERO = 64 * np.finfo(np.float64).eps


def next_room(room: int) -> int:
    """Return the room of a store that was full: a quarter more, 8 at least. Vectors of a long prompt are large."""
    return room + max(room // 4, 8)


class RowStore:
    """Row vectors appended block by block, kept in one tensor that grows when full, up to ``most`` rows.

    More than ``most`` are taken where they come, and cost no more room than they need.
    """

    def __init__(
        self, width: int, dtype: torch.dtype, device: torch.device, room: int = 32, most: int | None = None
    ) -> None:
        self._most = most
        self._storage = torch.empty(room if most is None else min(room, most), width, dtype=dtype, device=device)
        self.count = 0

    @property
    def rows(self) -> Tensor:
        """The rows so far, ``(count, width)``, as a view."""
        return self._storage[: self.count]

    def append(self, block: Tensor) -> None:
        """Append the rows of ``block``, ``(b, width)``."""
        needed = self.count + block.shape[0]
        if needed > self._storage.shape[0]:
            larger = next_room(self._storage.shape[0])
            size = max(needed, larger if self._most is None else min(larger, self._most))
            grown = self._storage.new_empty(size, self._storage.shape[1])
            grown[: self.count] = self.rows
            self._storage = grown
        self._storage[self.count : needed] = block
        self.count = needed

    def cut(self, count: int) -> None:
        """Keep the first ``count`` rows."""
        self.count = count

    def mix(self, combine: Tensor) -> None:
        """Put combinations ``combine @ rows``, no more of them than there are rows, in the place of the rows."""
        mixed = combine @ self.rows
        self.count = mixed.shape[0]
        self._storage[: self.count] = mixed


def to_numpy(matrix: Tensor) -> np.ndarray:
    """Return a small matrix as float64 on the host, where small factorisations are fastest."""
    return matrix.detach().to(device="cpu", dtype=torch.float64).numpy()


def like(array: np.ndarray, model: Tensor) -> Tensor:
    """Return a small host matrix in the dtype and on the device of ``model``."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device=model.device, dtype=model.dtype)


def thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin U, S and Vᵀ of a finite matrix in its own precision, by QR iteration where torch gives up.

    Divide and conquer (gesdd) gives up on a few finite matrices, one in 10^5 of those that Lanczos makes.
    """
    return _svd(matrix, full=False)


def small_svd(matrix: np.ndarray, *, full: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U, S and Vᵀ of a small finite host matrix.

    Torch decomposes it, as everything of that size here: numpy's BLAS has threads of its own, which wait for work on
    the cores that torch's products need. Beside those, 80 rows took ten times as long on two cores.
    """
    left, values, right = (part.numpy() for part in _svd(torch.from_numpy(matrix), full=full))
    return left, values, right


def _svd(matrix: Tensor, *, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=full)
    except torch.linalg.LinAlgError:  # alone: where memory runs out, a road that takes more of it is none
        parts = scipy.linalg.svd(to_numpy(matrix), full_matrices=full, lapack_driver="gesvd")
        left, values, right = (like(part, matrix) for part in parts)
    return left, values, right


def small_eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, ascending, and eigenvectors (columns) of a small symmetric host matrix; by torch as well."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()


def small_eigvalsh(matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of a small symmetric host matrix, ascending; by torch as well."""
    return torch.linalg.eigvalsh(torch.from_numpy(matrix)).numpy()


def svd_with_clean_zeros(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin U, S and Vᵀ of a small host matrix, vectors of zeros (to rounding) without a part of the others.

    LAPACK leaves in them up to 50 ε of the leading ones, more than an operator's own rounding explains. A step of
    subspace iteration of the leading ones, and what is orthogonal to that, leave 4 ε.
    """
    torch_matrix = torch.from_numpy(matrix)
    left, values, right = thin_svd(torch_matrix)
    leading = int((values > _ZERO * values[0]).sum()) if len(values) else 0
    if 0 < leading < len(values):
        images = right[:leading] @ torch_matrix.T, left[:, :leading].T @ torch_matrix
        left, right = (
            orthonormal_rows(torch.cat([image / values[:leading, None], vectors[leading:]]))
            for image, vectors in zip(images, (left.T, right), strict=True)
        )
        left = left.T
    return left.numpy(), values.numpy(), right.numpy()


def clean_zeros(matrix: Tensor, left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a thin SVD with what it has of the leading triplets, those above √ε σ₁, taken out of all others.

    As :func:`svd_with_clean_zeros`, in the precision of the matrix. What LAPACK leaves there grows with the matrix, and
    so do the values of zeros, up to 190 ε σ₁ for 1,000 rows: uᵀ A v takes their places, the largest first.
    """
    leading = int((values > torch.finfo(values.dtype).eps ** 0.5 * values[0]).sum())
    images = left[:, :leading].T @ matrix, right[:leading] @ matrix.T
    first_right, first_left = (orthonormal_rows(image / values[:leading, None]) for image in images)
    small_left, small_right = project_out(left[:, leading:].T, first_left), project_out(right[leading:], first_right)
    quotients = (small_left * (small_right @ matrix.T)).sum(dim=1)
    small, order = quotients.abs().sort(descending=True, stable=True)
    small_left = torch.where(quotients < 0.0, -small_left.T, small_left.T)[:, order]
    return (
        torch.cat([first_left.T, small_left], dim=1),
        torch.cat([values[:leading], small.clamp_max(values[leading - 1])]),
        torch.cat([first_right, small_right[order]]),
    )


def singular_values(rows: Tensor) -> np.ndarray:
    """Return the singular values of a few long rows, ``(m, d)``, descending."""
    return small_svd(to_numpy(torch.linalg.qr(rows.T, mode="r").R))[1]


def spectral_norm(matrix: Tensor) -> float:
    """Return ‖matrix‖₂, 0 for an empty one."""
    return float(torch.linalg.matrix_norm(matrix, ord=2)) if matrix.numel() else 0.0


def orthonormality_loss(rows: Tensor) -> float:
    """Return ‖X Xᵀ - I‖₂ of the rows X, 0 where they are orthonormal or there are none."""
    return spectral_norm(rows @ rows.T - torch.eye(rows.shape[0], dtype=rows.dtype, device=rows.device))


def project_out(rows: Tensor, basis: Tensor) -> Tensor:
    """Return ``rows`` less their components along the orthonormal rows of ``basis``."""
    return rows - (rows @ basis.T) @ basis if basis.shape[0] else rows


def orthonormal_factor(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return L and orthonormal Q with rows = L Q: what Gram-Schmidt makes of them.

    Orthonormal rows come back as they are, signs included: Householder reflections alone would flip some.

    Parameters
    ----------
    rows : Tensor, shape (s, d), s <= d

    Returns
    -------
    Tensor, shape (s, s), lower triangular, no negative number on its diagonal
    Tensor, shape (s, d)
    """
    basis, upper = torch.linalg.qr(rows.T)
    signs = torch.where(upper.diagonal() < 0.0, -1.0, 1.0).to(rows.dtype)
    return upper.T * signs, (basis * signs).T


def orthonormal_rows(rows: Tensor) -> Tensor:
    """Return orthonormal rows that span what the given rows (independent) span; orthonormal ones come back as such."""
    return orthonormal_factor(rows)[1]


def dominant_rows(candidates: Tensor, width: int, threshold: float) -> Tensor:
    """Return the leading right singular directions of ``candidates``: at most ``width``, all above ``threshold``.

    Parameters
    ----------
    candidates : Tensor, shape (c, d)
    width : int
    threshold : float
        Directions with a singular value at or below it are deflated.

    Returns
    -------
    Tensor, shape (b, d), orthonormal, b <= width
    """
    factor = torch.linalg.qr(candidates.T)
    _, strengths, right = small_svd(to_numpy(factor.R).T)
    kept = min(width, int((strengths > threshold).sum()))
    return like(right[:kept], candidates) @ factor.Q.T


def complete_block(block: Tensor, basis: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Make a block orthonormal to a basis, and fill it up to ``width`` with random directions orthogonal to both.

    Rows that are orthonormal, and orthogonal to the basis, stay the first ones as they are, signs included.

    Parameters
    ----------
    block : Tensor, shape (b, d)
        Orthonormal rows, projected once before: this is the second of the two projections that full
        reorthogonalisation needs. It is repeated where it took away much, as from directions made of rounding.
    basis : Tensor, shape (m, d), orthonormal rows
    width : int
        Rows wanted; fewer come back only where the space has no more dimensions.
    generator : torch.Generator
        On the host, so that the numbers drawn do not depend on the device.

    Returns
    -------
    Tensor, shape (min(width, d - m), d)
    """
    room = basis.shape[1] - basis.shape[0]
    block = block[:room]
    missing = min(width, room) - block.shape[0]
    if missing > 0:
        block = orthonormal_rows(torch.cat([block, random_rows(missing, block, generator)]))
    for _ in range(_PROJECTIONS if block.shape[0] else 0):
        inside = block @ basis.T
        block = orthonormal_rows(block - inside @ basis)
        if float(torch.linalg.matrix_norm(inside)) <= _MOSTLY_OUTSIDE:
            break
    return block


def random_rows(count: int, model: Tensor, generator: torch.Generator) -> Tensor:
    """Draw Gaussian rows ``(count, d)`` in the dtype and on the device of ``model`` of shape (…, d)."""
    drawn = torch.randn(count, model.shape[1], dtype=torch.float64, device="cpu", generator=generator)
    return drawn.to(device=model.device, dtype=model.dtype)

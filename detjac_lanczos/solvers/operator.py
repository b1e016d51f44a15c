"""What the solvers ask of a linear operator, and how matrices and scipy operators are made to speak it."""

import traceback
from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, OperatorError


@runtime_checkable
class LinearOperator(Protocol):
    """A real linear map known by its products alone.

    Blocks are columns, as in scipy, in the operator's dtype; a solver may pass transposed views of row-major blocks.
    Products may come back in another floating point type.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the products are computed in."""
        ...

    @property
    def device(self) -> torch.device:
        """Where blocks are expected and products are returned."""
        ...

    def matmat(self, X: Tensor, /) -> Tensor:
        """Map ``(d_in, b)`` to ``(d_out, b)``."""
        ...

    def rmatmat(self, Y: Tensor, /) -> Tensor:
        """Map ``(d_out, b)`` to ``(d_in, b)`` by the transpose."""
        ...


@runtime_checkable
class OperatorBatch(Protocol):
    """Many operators that share their sweeps: one call serves all blocks at once, whose widths may differ."""

    @property
    def shapes(self) -> Sequence[tuple[int, int]]:
        """``(d_out, d_in)`` of each operator."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the products are computed in."""
        ...

    @property
    def device(self) -> torch.device:
        """Where blocks are expected and products are returned."""
        ...

    def matmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_in, b_i))]`` to ``[(d_out, b_i)]`` in one sweep."""
        ...

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]], /) -> list[Tensor]:
        """Map ``[(operator, (d_out, b_i))]`` to ``[(d_in, b_i)]`` in one sweep."""
        ...

    def rmatmat_shared(self, Y: Tensor, /) -> list[Tensor]:
        """Map one cotangent block ``(d_out, b)`` by every operator's transpose, to ``[(d_in, b)]``."""
        ...

    def cost(self, index: int, /) -> float:
        """Row-sweeps of one column of one operator, either way."""
        ...

    def shared_cost(self) -> float:
        """Row-sweeps of one column of ``rmatmat_shared``."""
        ...


@runtime_checkable
class SummingBatch(OperatorBatch, Protocol):
    """A batch whose products with blocks of one width can be added up within the sweep, at the price of shared columns.

    Optional: for other batches the solvers make the products one by one and add them.
    """

    def matmat_sum(self, blocks: Sequence[tuple[int, Tensor]], /) -> Tensor:
        """Map ``[(operator, (d_in, b))]`` to the sum of the products, ``(d_out, b)``, in one sweep."""
        ...


_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_WHOLE = (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, *_SIGNED)


class MatrixOperator:
    """A torch matrix as an operator; one of whole numbers or truth values is multiplied in float64, as scipy's are."""

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2:
            raise InputError(f"a matrix has two axes, this tensor has {matrix.ndim}: pass one of shape (d_out, d_in)")
        if matrix.is_meta:
            raise InputError("a tensor on the meta device has no numbers: load it on a real one")
        if matrix.dtype in _WHOLE:
            # What lies at one place is added up in the matrix's own type: True and True are True.
            matrix = (matrix.coalesce() if matrix.layout is torch.sparse_coo else matrix).double()
        require_real(matrix.dtype)
        self.matrix = matrix.detach()
        if _multiplies_as_csr(matrix):
            self.transpose = self.matrix.transpose(0, 1).to_sparse_csr()
        else:
            # Of the other sparse layouts, COO alone multiplies both ways, and blocks of any strides.
            self.matrix = self.matrix if matrix.layout is torch.strided else self.matrix.to_sparse_coo()
            self.transpose = self.matrix.T
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matmat(self, X: Tensor, /) -> Tensor:
        """Map ``(d_in, b)`` to ``(d_out, b)``."""
        return self.matrix @ X

    def rmatmat(self, Y: Tensor, /) -> Tensor:
        """Map ``(d_out, b)`` to ``(d_in, b)``."""
        return self.transpose @ Y


def _multiplies_as_csr(matrix: Tensor) -> bool:
    """Whether torch multiplies a matrix as CSR, which on the CPU takes a tenth of COO's time, in these types alone."""
    known = matrix.device.type == "cpu" and matrix.dtype in (torch.float32, torch.float64)
    return known and matrix.layout is torch.sparse_csr


_ARRAY_TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}


class ScipyOperator:
    """Anything that ``scipy.sparse.linalg.aslinearoperator`` takes: numpy in and out, on the CPU.

    What declares float16 is given float32 blocks, as numpy multiplies float16 arrays with those in float32; float16
    ones only where a block of zeros, sent once, comes back as float16.
    """

    def __init__(self, operator: Any) -> None:
        from scipy.sparse.linalg import aslinearoperator

        axes = getattr(operator, "ndim", 2)
        if axes != 2:
            raise InputError(f"a matrix has two axes, this array has {axes}: pass one of shape (d_out, d_in)")
        if isinstance(operator, np.ma.MaskedArray) and np.ma.is_masked(operator):
            raise InputError("a masked array hides numbers that products would count: fill it first, as filled(0) does")
        self.operator = aslinearoperator(operator)
        self.shape = (int(self.operator.shape[0]), int(self.operator.shape[1]))
        dtype = np.dtype(self.operator.dtype) if self.operator.dtype is not None else np.dtype(np.float64)
        if dtype.kind == "c":
            raise InputError("complex operators are not supported: split it into real and imaginary parts")
        self.dtype = torch.float32 if dtype in (np.dtype(np.float32), np.dtype(np.float16)) else torch.float64
        self.device = torch.device("cpu")
        if dtype == np.float16 and self.matmat(torch.zeros(self.shape[1], 1, device="cpu")).dtype is torch.float16:
            self.dtype = torch.float16

    def matmat(self, X: Tensor, /) -> Tensor:
        """Map ``(d_in, b)`` to ``(d_out, b)``."""
        try:
            return self._as_tensor(self.operator.matmat(X.numpy()))
        except ValueError as error:
            raise OperatorError(f"the scipy operator cannot be applied ({error}): check its matvec") from error

    def rmatmat(self, Y: Tensor, /) -> Tensor:
        """Map ``(d_out, b)`` to ``(d_in, b)``."""
        try:
            return self._as_tensor(self.operator.rmatmat(Y.numpy()))
        except (TypeError, NotImplementedError, ValueError) as error:
            why = ": give it rmatvec" if _lacks_a_transpose(error) else f" ({error}): check rmatvec"
            raise OperatorError(f"the scipy operator cannot apply its transpose{why}") from error

    def _as_tensor(self, block: Any) -> Tensor:
        from scipy.sparse import issparse

        if issparse(block):
            raise OperatorError(
                f"the scipy operator returned a {type(block).__name__}: products are dense, as toarray() makes them"
            )
        array = np.asarray(block)
        if array.dtype.kind == "c":
            raise OperatorError("the scipy operator returned complex values: only real operators are supported")
        wanted = np.dtype(_ARRAY_TYPES[self.dtype])
        # Coarser products than declared stay what they are, so that they are seen.
        coarse = array.dtype.kind == "f" and array.dtype.itemsize < wanted.itemsize
        return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype if coarse else wanted))


def _lacks_a_transpose(error: Exception) -> bool:
    """Whether a product failed for want of a function: scipy says so, or calls None itself."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    of_scipy = str(frame.f_globals.get("__name__")).startswith("scipy.")
    return isinstance(error, NotImplementedError) or (isinstance(error, TypeError) and of_scipy)


class Direction(Enum):
    """Which way a pass goes."""

    FORWARD = "forward"
    TRANSPOSED = "transposed"

    @property
    def other(self) -> "Direction":
        """The opposite way."""
        return Direction.TRANSPOSED if self is Direction.FORWARD else Direction.FORWARD


def as_operator(A: Any) -> LinearOperator:
    """Return ``A`` as a :class:`LinearOperator`.

    Parameters
    ----------
    A : Tensor, numpy or scipy matrix, scipy LinearOperator, or LinearOperator
        A real matrix ``(d_out, d_in)``, or anything with ``shape, dtype, device, matmat, rmatmat``.

    Returns
    -------
    LinearOperator
        ``A`` itself where it is one.

    Raises
    ------
    InputError
        The object is complex, lacks part of the protocol, or has a shape, dtype or device that is none.
    """
    if isinstance(A, Tensor):
        return MatrixOperator(A)
    blocks_alone = hasattr(A, "matmat") and hasattr(A, "rmatmat") and not hasattr(A, "matvec")  # scipy asks for matvec
    if blocks_alone or isinstance(getattr(A, "dtype", None), torch.dtype):
        missing = [name for name in ("shape", "dtype", "device", "matmat", "rmatmat") if not hasattr(A, name)]
        if missing:
            raise InputError(f"{type(A).__name__} is no linear operator: give it {', '.join(missing)}")
        require_declared([A.shape], A.dtype, A.device)
        return cast(LinearOperator, A)
    try:
        return ScipyOperator(A)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{type(A).__name__} is no linear operator ({error}): pass a matrix, a scipy LinearOperator or an object "
            "with shape, dtype, device, matmat and rmatmat"
        ) from error


def require_declared(shapes: Any, dtype: Any, device: Any) -> None:
    """Raise :class:`InputError` for what an operator, or a batch of them, cannot be of."""
    if not isinstance(shapes, Sequence):
        raise InputError(f"shapes are a list of (d_out, d_in), one for each operator, not {shapes!r}")
    for shape in shapes:
        sides = shape.tolist() if isinstance(shape, np.ndarray) else shape
        pair = isinstance(sides, tuple | list) and len(sides) == 2  # a mapping or a set has no first and second side
        if not pair or any(isinstance(side, bool) or not isinstance(side, int | np.integer) for side in sides):
            raise InputError(f"an operator's shape is (d_out, d_in), two whole numbers: this one has {shape!r}")
    require_real(dtype)
    try:
        usable = not torch.empty(0, device=torch.device(device)).is_meta
    except (TypeError, ValueError, RuntimeError, AssertionError):  # the last where torch was built without such devices
        usable = False
    if not usable:
        raise InputError(
            f"device = {device!r} is none of torch that holds numbers here: give the one that blocks are expected on"
        )


def require_real(dtype: Any) -> None:
    """Raise :class:`InputError` for a dtype that no operator here can have."""
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"dtype = {dtype!r} is none of torch: give the one that products are computed in, such as torch.float64"
        )
    if dtype.is_complex:
        raise InputError("complex operators are not supported: split it into real and imaginary parts")
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise InputError(f"an operator needs a floating point dtype of 16 bits or more, not {dtype}: convert it first")

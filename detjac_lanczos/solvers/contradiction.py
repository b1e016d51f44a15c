"""Why products of an operator contradict each other: a wrong transpose, or an operator that changes."""

from collections.abc import Iterable

from torch import Tensor

from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.operator import Direction
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status


def cause(
    batch: CountingBatch,
    index: int,
    sent: Iterable[tuple[Direction, Tensor, Tensor]],
    scale: float,
    options: Options,
    *,
    defect: float,
) -> Status:
    """Send rows again, as many as ``max_products`` leaves: where products come out alike, it is the transpose.

    The defect of a transpose is noted in the batch.

    Parameters
    ----------
    batch : CountingBatch
    index : int
        Of the operator.
    sent : iterable of (direction, rows, products)
        Rows sent before, ``(b, d_in)`` forward and ``(b, d_out)`` transposed, and their products times ``scale``.
    scale : float
    options : Options
    defect : float
        What contradicts, relative to the products.

    Returns
    -------
    Status
        NOT_ADJOINT or NOT_DETERMINISTIC.
    """
    for direction, rows, products in sent:
        count = min(rows.shape[0], options.left(batch.forward[index] + batch.transposed[index]))
        if count and not batch.repeats(direction, index, rows[:count], products[:count], scale):
            return Status.NOT_DETERMINISTIC
    batch.defects[index] = defect
    return Status.NOT_ADJOINT

"""From which side matrices are written out: by rows, through the transpose, or by columns where these are cheaper."""

from collections.abc import Sequence

from detjac_lanczos.solvers.operator import Direction


def writing_ways(
    shapes: Sequence[tuple[int, int]], costs: Sequence[float], shared_cost: float
) -> tuple[list[Direction], float]:
    """Return which way unit vectors go to write every matrix out, and their row-sweeps in all.

    Operators of one output space share their rows, and all go one way: by columns, each for itself, where every one is
    taller than wide and that is cheaper. A square matrix is always written by rows.

    Parameters
    ----------
    shapes : sequence of (d_out, d_in)
    costs : sequence of float
        Row-sweeps of one column of each operator, either way.
    shared_cost : float
        Those of one cotangent that all of them share.
    """
    tall = [d_in < d_out for d_out, d_in in shapes]
    alone = sum(cost * min(shape) for cost, shape in zip(costs, shapes, strict=True))
    if len({d_out for d_out, _ in shapes}) == 1:
        shared = shapes[0][0] * shared_cost
        if not all(tall) or shared <= alone:
            return [Direction.TRANSPOSED] * len(shapes), shared
    return [Direction.FORWARD if one else Direction.TRANSPOSED for one in tall], alone

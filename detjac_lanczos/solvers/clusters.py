"""Clusters: neighbouring values that their residuals cannot tell apart."""

from collections.abc import Sequence
from itertools import pairwise


def clusters(values: Sequence[float], residuals: Sequence[float]) -> list[range]:
    """Return the index ranges of values that coincide within their residuals, single values among them.

    Parameters
    ----------
    values : sequence of float, descending
    residuals : sequence of float
        The larger one of each value. A gap above the sum of two neighbours' residuals separates them.
    """
    if len(values) == 0:
        return []
    apart = (j for j in range(1, len(values)) if values[j - 1] - values[j] > residuals[j - 1] + residuals[j])
    return [range(start, end) for start, end in pairwise([0, *apart, len(values)])]

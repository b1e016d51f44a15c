"""How much goes into one pass of many: columns of one operator, or operators with a column each."""

from collections.abc import Sequence

CHUNK_ROWS = 1024
"""Row-sweeps of a pass. Chosen: enough to keep a matrix product busy, few enough to cost little memory."""


def chunk_width(cost: float, d_out: int) -> int:
    """Return how many columns to send at once: about a thousand rows, in chunks of one size."""
    at_most = max(1, min(d_out, round(CHUNK_ROWS / max(cost, 1e-9))))
    return -(-d_out // -(-d_out // at_most))


def turns(costs: Sequence[float], most: float = CHUNK_ROWS) -> list[list[int]]:
    """Return places in groups that cost no more than ``most`` together, of one place at least."""
    groups: list[list[int]] = []
    rows = 0.0
    for index, cost in enumerate(costs):
        rows += cost
        if not groups or rows > most:
            groups.append([])
            rows = cost
        groups[-1].append(index)
    return groups

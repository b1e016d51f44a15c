"""Which kernel serves which shapes, as data: recorded in a run, put in force again when it is repeated."""

from collections.abc import Mapping
from typing import Any

from detjac_kernels import mixing_roads, packed_roads, roads

_TABLES: dict[str, Any] = {"gemm": roads, "packed": packed_roads, "mixing": mixing_roads}
"""The float32 products of a processor; packed products and rebuilt mixing, which only CUDA devices choose for."""


def kernel_choices() -> dict[str, dict[str, str]]:
    """Return name of a table to its choices; those of CUDA devices only where some were made."""
    found = {name: table.choices() for name, table in _TABLES.items()}
    return {name: made for name, made in found.items() if made or name == "gemm"}


def replay_kernel_choices(recorded: Mapping[str, Any]) -> None:
    """Put recorded choices in force; whatever else is recorded beside them is left alone."""
    for name, table in _TABLES.items():
        table.replay(recorded.get(name) or {})

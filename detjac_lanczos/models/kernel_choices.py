"""Which kernel serves which shapes, as data: recorded in a run, put in force again when it is repeated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any

from detjac_kernels import mixing_roads, packed_roads, roads
from detjac_lanczos.errors import InputError

_TABLES: dict[str, Any] = {"gemm": roads, "packed": packed_roads, "mixing": mixing_roads}
"""The float32 products of a processor; packed products and rebuilt mixing, which only CUDA devices choose for."""

_turn = RLock()


def kernel_choices() -> dict[str, dict[str, str]]:
    """Return name of a table to its choices; those of CUDA devices only where some were made."""
    found = {name: table.choices() for name, table in _TABLES.items()}
    return {name: made for name, made in found.items() if made or name == "gemm"}


def kernel_choices_fit(recorded: Any) -> bool:
    """Tell whether something is a mapping whose tables, those that it has, go from classes of shapes to roads."""
    if not isinstance(recorded, Mapping):
        return False
    tables = [recorded[name] for name in _TABLES if name in recorded]
    return all(isinstance(table, Mapping) for table in tables) and all(
        isinstance(word, str) for table in tables for pair in table.items() for word in pair
    )


@contextmanager
def kernel_choices_in_force(recorded: Mapping[str, Any]) -> Iterator[None]:
    """Put recorded choices in force for a while: afterwards their classes have the roads that they had, or none.

    Whatever else is recorded beside them is left alone. Threads that do so take turns: the tables are of the process.

    Raises
    ------
    InputError
        If they are not what a run records.
    """
    if not kernel_choices_fit(recorded):
        raise InputError('choices are those of an earlier run: give run.record["choices"]')
    replayed = {name: recorded[name] for name in _TABLES if recorded.get(name)}
    if not replayed:
        yield
        return
    with _turn:
        before = kernel_choices()
        for name, choices in replayed.items():
            _TABLES[name].replay(choices)
        try:
            yield
        finally:
            for name, choices in replayed.items():
                made = before.get(name, {})
                _TABLES[name].forget(choices)
                _TABLES[name].replay({key: made[key] for key in choices if key in made})

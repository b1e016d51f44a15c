"""Which tiles the 4-bit GEMM is shipped with: by architecture, direction, number of rows and compute dtype.

Every configuration here is compiled ahead of time for its architecture in the tests, and held to written limits of
registers, shared memory and instructions per decoded weight.
"""

from dataclasses import dataclass

import torch

ROW_CLASSES = (16, 32, 64, 128)
"""A number of rows is computed in tiles of the smallest of these that holds it, or of the last."""


@dataclass(frozen=True)
class Tiles:
    """One way to launch the 4-bit GEMM.

    ``rows`` × ``out`` of the product by one program, ``reduce`` of the reduction a step; ``weight_left``: the product
    is made transposed; ``scale_inside``: the columns of the input are scaled in the kernel, else in a pass before it.
    """

    rows: int
    out: int
    reduce: int
    warps: int
    stages: int
    weight_left: bool
    scale_inside: bool


def tiles(rows: int, transposed: bool, dtype: torch.dtype, capability: int) -> Tiles:
    """Return the tiles for a number of rows, a direction, a compute dtype, and 80 (Ampere) or 90 (Hopper)."""
    return _SHIPPED[_architecture(capability), transposed, _width(dtype)][row_class(rows)]


def row_class(rows: int) -> int:
    """Return the height of the row tiles for a number of rows."""
    return next((height for height in ROW_CLASSES if rows <= height), ROW_CLASSES[-1])


def shipped() -> dict[tuple[int, bool, int, int], Tiles]:
    """Return every configuration: (architecture, transposed, bytes of a number, row class) to its tiles."""
    return {(*key, height): chosen for key, classes in _SHIPPED.items() for height, chosen in classes.items()}


def _architecture(capability: int) -> int:
    return 90 if capability == 90 else 80


def _width(dtype: torch.dtype) -> int:
    return 4 if dtype is torch.float32 else 2


_FLOAT32 = dict.fromkeys(ROW_CLASSES, Tiles(32, 64, 32, 4, 2, False, True))

_SHIPPED: dict[tuple[int, bool, int], dict[int, Tiles]] = {
    (90, False, 2): {
        16: Tiles(16, 128, 64, 4, 3, True, True),
        32: Tiles(32, 128, 64, 4, 3, True, True),
        64: Tiles(64, 128, 64, 4, 3, True, True),
        128: Tiles(128, 128, 128, 8, 2, True, False),
    },
    (90, True, 2): {
        16: Tiles(16, 128, 64, 4, 3, True, True),
        32: Tiles(32, 128, 64, 4, 3, True, True),
        64: Tiles(64, 128, 64, 4, 3, False, True),
        128: Tiles(128, 128, 128, 8, 2, False, False),
    },
    (80, False, 2): {
        16: Tiles(16, 128, 64, 4, 2, True, True),
        32: Tiles(32, 128, 64, 4, 2, True, False),
        64: Tiles(32, 128, 64, 4, 2, True, False),
        128: Tiles(32, 128, 64, 4, 2, True, False),
    },
    (80, True, 2): {
        16: Tiles(16, 128, 64, 4, 2, False, True),
        32: Tiles(32, 128, 64, 4, 2, False, False),
        64: Tiles(64, 128, 64, 4, 2, False, False),
        128: Tiles(64, 128, 64, 4, 2, False, False),
    },
    (80, False, 4): _FLOAT32,
    (80, True, 4): _FLOAT32,
    (90, False, 4): _FLOAT32,
    (90, True, 4): _FLOAT32,
}

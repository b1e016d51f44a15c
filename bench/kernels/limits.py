"""The written limits that every compiled kernel is held to."""

from bench.kernels.resources import Resources
from bench.kernels.shipped import Case

REGISTERS = 255
SHARED = 232_448
"""Bytes of shared memory that a program may have on Hopper: 227 KiB; Ampere's A100 gives 166,912 (163 KiB)."""

SHARED_AMPERE = 166_912
PER_WEIGHT = {"exact": 12.0, "pairs": 9.0}
"""Thread-instructions of the main loop per decoded weight, loads, products and the scaling of rows included."""


def per_weight(case: Case, found: Resources) -> float:
    """Return the thread-instructions of the main loop per weight that it decodes."""
    return found.loop * found.threads / case.weights


def broken(case: Case, found: Resources) -> list[str]:
    """Return a sentence for every limit that a compiled kernel breaks."""
    shared = SHARED if case.architecture == 90 else SHARED_AMPERE
    sentences = []
    if found.spilled:
        sentences.append(f"spills {found.spilled} bytes")
    if found.registers > REGISTERS:
        sentences.append(f"takes {found.registers} registers")
    if found.shared > shared:
        sentences.append(f"takes {found.shared} bytes of shared memory; {shared} are there")
    if case.matrix_products:
        wanted = "wgmma" if case.architecture == 90 and case.rows >= 64 else None
        if wanted and not found.products[wanted]:
            sentences.append(f"has no {wanted}")
        if not any(found.products.values()):
            sentences.append("has no matrix instructions")
    if case.weights:
        limit = PER_WEIGHT[case.table]
        if (cost := per_weight(case, found)) > limit:
            sentences.append(f"takes {cost:.2f} instructions per weight; {limit} are allowed")
    return [f"{case.name}: {sentence}" for sentence in sentences]

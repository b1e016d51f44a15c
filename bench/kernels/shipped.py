"""Every kernel in every configuration that is shipped, with all it can be asked to do switched on."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from bench.kernels import sources
from bench.kernels.resources import Resources
from detjac_kernels import device
from detjac_kernels.device.configurations import Tiles, shipped
from detjac_kernels.device.mixing import SHIPPED as MIXING_TILES

ARCHITECTURES = (80, 90)
NUMBERS = {4: ("float32",), 2: ("bfloat16", "float16")}
"""Bytes of a number to its dtypes."""


@dataclass(frozen=True)
class Case:
    """One thing to compile.

    ``rows`` is the height of its tile, ``weights`` how many weights a step of its loop decodes (0 where that is not
    what its loop does), ``table`` "exact", "pairs" or nothing, ``matrix_products`` whether it should have matrix
    instructions.
    """

    kernel: str
    architecture: int
    what: str
    compile: Callable[[], Resources]
    rows: int = 0
    weights: int = 0
    table: str = ""
    matrix_products: bool = False

    @property
    def name(self) -> str:
        """Kernel, architecture and configuration in one line."""
        return f"{self.kernel}, sm_{self.architecture}, {self.what}"


def cases() -> list[Case]:
    """Return everything shipped."""
    return [*_packed_gemms(), *_around_packed_gemms(), *_mixings(), *_captures()]


def compile_case(index: int) -> Resources:
    """Compile the case of a number: what a worker process is asked to do."""
    return cases()[index].compile()


def compile_all(indices: Sequence[int] | None = None, workers: int = 2) -> list[tuple[Case, Resources]]:
    """Compile everything shipped, or the cases of some numbers, in processes beside one another."""
    everything = cases()
    chosen = range(len(everything)) if indices is None else indices
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return [(everything[i], found) for i, found in zip(chosen, pool.map(compile_case, chosen), strict=True)]


def sources_digest() -> str:
    """Return a digest of the files that decide what is compiled."""
    files = [Path(device.__file__).parent / f"{name}.py" for name in _COMPILED]
    files += [Path(__file__).with_name(f"{name}.py") for name in ("shipped", "sources", "resources")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_COMPILED = ("captures", "configurations", "decode", "launching", "mixing", "mixing_kernel", "packed_gemm")


def _packed_gemms() -> Iterator[Case]:
    """Tiles that several numbers of rows share are one case. float32 multiplies in its loop, without matrix units.

    Every tile is compiled for each dtype and table, and then with one thing changed at a time: a matrix that the tiles
    do not divide, whose masks take registers; scales that are not quantised; the reduction in parts.
    """
    seen: dict[tuple[int, bool, int, Tiles], None] = {}
    for (architecture, transposed, width, _), chosen in shipped().items():
        seen[architecture, transposed, width, chosen] = None
    for architecture, transposed, width, chosen in seen:
        first, *others = NUMBERS[width]
        variants: list[tuple[str, str, dict[str, bool]]] = [(number, "exact", {}) for number in (first, *others)]
        variants += [(first, "pairs", {"pairs": True})] if width == 2 else []
        variants += [(first, "exact, ragged", {"even": False})]
        variants += [(first, "exact, plain scales", {"nested": False}), (first, "exact, in parts", {"in_parts": True})]
        for number, variant, changed in variants:
            yield Case(
                "4-bit GEMM",
                architecture,
                f"{'y W' if transposed else 'x Wᵀ'}, {chosen.rows}×{chosen.out}×{chosen.reduce}, {number}, {variant}",
                partial(sources.packed_gemm, architecture, transposed, number, chosen, **changed),
                chosen.rows,
                chosen.out * chosen.reduce if width == 2 else 0,
                variant.split(",")[0],
                width == 2,
            )


def _around_packed_gemms() -> Iterator[Case]:
    """Yield the sum of parts and the decoding of a rectangle, the latter also in tiles for few columns."""
    for architecture, number in product(ARCHITECTURES, (*NUMBERS[4], *NUMBERS[2])):
        what = f"16×128, {number}"
        yield Case("sum of parts", architecture, what, partial(sources.parts, architecture, number))
        for nested, rows in ((True, 32), (False, 32), (True, 64)):
            what = f"{rows}×{4096 // rows}, {number}{'' if nested else ', plain scales'}"
            source = partial(sources.rectangle, architecture, number, nested, rows)
            yield Case("decoded rectangle", architecture, what, source)


def _mixings() -> Iterator[Case]:
    """In float32 heads of the larger size are the case, also of half precision q; in half precision both sizes are."""
    for architecture, transposed in product(ARCHITECTURES, (False, True)):
        for width, chosen in MIXING_TILES.items():
            tile = f"{'Pᵀ Y' if transposed else 'P V'}, {chosen.own}×{chosen.columns}×{chosen.other}"
            for number in NUMBERS[width]:
                kinds = [(number, 128, "P stored"), (number, 256, "P rebuilt, heads of 256")]
                if width == 2:
                    kinds.append((number, 128, "P rebuilt, heads of 128"))
                else:
                    kinds.append(("bfloat16", 256, "P rebuilt, heads of 256 in bfloat16"))
                for scores, head_dim, kind in kinds:
                    stored = kind == "P stored"
                    yield Case(
                        "mixing",
                        architecture,
                        f"{tile}, {number}, {kind}",
                        partial(sources.mixing, architecture, transposed, number, scores, head_dim, stored, chosen),
                        chosen.own,
                        matrix_products=width == 2,
                    )


def _captures() -> Iterator[Case]:
    for architecture, number in product(ARCHITECTURES, (*NUMBERS[4], *NUMBERS[2])):
        for width in (8192, 32768):
            source = partial(sources.norm, architecture, number, width)
            yield Case("norm and rstd", architecture, f"{width} columns, {number}", source)
        source = partial(sources.gate, architecture, number)
        yield Case("gate", architecture, f"gelu_tanh, rstd folded, {number}", source)

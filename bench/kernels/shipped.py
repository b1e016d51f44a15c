"""Every kernel in every configuration that is shipped, with all it can be asked to do switched on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context

from bench.kernels import sources
from bench.kernels.resources import Resources
from detjac_kernels.device.configurations import ROW_CLASSES, Tiles, shipped
from detjac_kernels.device.mixing import SHIPPED as MIXING_TILES

ARCHITECTURES = (80, 90)


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


def compile_all(workers: int = 2) -> list[tuple[Case, Resources]]:
    """Compile everything shipped, in processes beside one another."""
    everything = cases()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(zip(everything, pool.map(compile_case, range(len(everything))), strict=True))


def _packed_gemms() -> Iterator[Case]:
    """Tiles that several numbers of rows share are one case. float32 multiplies in its loop, without matrix units."""
    seen: dict[tuple[int, bool, int, Tiles, bool], None] = {}
    for (architecture, transposed, width, _), chosen in shipped().items():
        for pairs in (False, True) if width == 2 else (False,):
            seen[architecture, transposed, width, chosen, pairs] = None
    for architecture, transposed, width, chosen, pairs in seen:
        number, table = ("float32" if width == 4 else "bfloat16"), ("pairs" if pairs else "exact")
        yield Case(
            "4-bit GEMM",
            architecture,
            f"{'y W' if transposed else 'x Wᵀ'}, {chosen.rows}×{chosen.out}×{chosen.reduce}, {number}, {table}",
            partial(sources.packed_gemm, architecture, transposed, width, chosen, pairs),
            chosen.rows,
            chosen.out * chosen.reduce if width == 2 else 0,
            table,
            width == 2,
        )


def _around_packed_gemms() -> Iterator[Case]:
    """Yield the largest tiles on matrices that they do not divide, whose masks take registers, and smaller kernels."""
    for (architecture, transposed, width, height), chosen in shipped().items():
        if (width, height) == (2, ROW_CLASSES[-1]):
            yield Case(
                "4-bit GEMM",
                architecture,
                f"{'y W' if transposed else 'x Wᵀ'}, {chosen.rows}×{chosen.out}×{chosen.reduce}, bfloat16, ragged",
                partial(sources.packed_gemm, architecture, transposed, width, chosen, False, False),
                chosen.rows,
                matrix_products=True,
            )
    for architecture in ARCHITECTURES:
        yield Case("sum of parts", architecture, "16×128", partial(sources.parts, architecture))
        yield Case("decoded rectangle", architecture, "32×64", partial(sources.rectangle, architecture))


def _mixings() -> Iterator[Case]:
    """In float32 the two sizes of heads share their tiles: the larger one is the case."""
    for architecture, transposed in product(ARCHITECTURES, (False, True)):
        for (width, head_dim), chosen in MIXING_TILES.items():
            for stored in (False, True) if head_dim == 128 else (False,):
                if width == 4 and head_dim == 128:
                    continue
                tile = f"{'Pᵀ Y' if transposed else 'P V'}, {chosen.own}×{chosen.columns}×{chosen.other}"
                source = "P stored" if stored else f"P rebuilt, heads of {head_dim}"
                yield Case(
                    "mixing",
                    architecture,
                    f"{tile}, {'float32' if width == 4 else 'bfloat16'}, {source}",
                    partial(sources.mixing, architecture, transposed, width, head_dim, stored, chosen),
                    chosen.own,
                    matrix_products=width == 2,
                )


def _captures() -> Iterator[Case]:
    for architecture in ARCHITECTURES:
        for width in (8192, 32768):
            yield Case("norm and rstd", architecture, f"{width} columns", partial(sources.norm, architecture, width))
        yield Case("gate", architecture, "gelu_tanh, rstd folded", partial(sources.gate, architecture))

"""What the bench aims at, and what of it each machine reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import mean
from textwrap import fill

from bench.records import AUTOGRAD, DENSE, MISSING, MODELS, WIDENINGS, Record, both_ways, read

PEER = "scipy propack"
WIDTHS, PASSES, PRODUCTS = (2, 4, 8), (0.6, 0.4, 0.28), "1.6 and 2.2"


def aims(found: Sequence[Record]) -> list[tuple[str, str, list[str]]]:
    """Return what was aimed at: its name, the aim, and what each machine has, in bold where it falls short."""
    rows = []
    for name, key, wanted in (("(a)", AUTOGRAD, (1.8, 4.5, 9)), ("(a′)", DENSE, (1.6, 4, 8))):
        roads = [{road["widening"]: road[key] for road in record.get("roads", [])} for record in found]
        asked = list(WIDENINGS)[: len(wanted)]
        cells = [_against([of.get(r) for r in asked], wanted, float.__ge__) for of in roads]
        widenings = " / ".join(f"×{r}" for r in asked)
        rows.append((f"times faster than {name}, {widenings}", f"at least {slashed(wanted)}", cells))
    worst = [[max(both_ways(row)) for row in record.get("floor", [])] for record in found]
    cells = [_against(values or [None] * 3, (1.15, 1.1, 1.1), float.__le__) for values in worst]
    rows.append(("a sweep against its GEMMs, 56 / 112 / 224 rows", "at most 1.15 / 1.1 / 1.1", cells))
    worst = [
        [max(max(both_ways(row)) for row in record["families"])] if "families" in record else [] for record in found
    ]
    cells = [_against(values or [None], (1.15,), float.__le__) for values in worst]
    rows.append(("the same in every family, eight blocks", "at most 1.15", cells))
    return rows


def _against(values: Sequence[float | None], wanted: Sequence[float], holds: Callable[[float, float], bool]) -> str:
    shown = [
        MISSING if value is None else f"{value:.2f}" if holds(value, aim) else f"**{value:.2f}**"
        for value, aim in zip(values, wanted, strict=True)
    ]
    return " / ".join(shown)


def of_waits() -> str:
    """Return what of the passes and products of PROPACK blocks take, for README."""
    ratios = [_of_peer(model) for model in MODELS]
    cells = (
        [" / ".join(f"{of[width][which]:.2f}" for width in WIDTHS) for of in ratios] for which in ("passes", "products")
    )
    passes, products = (" and ".join(each) for each in cells)
    return (
        f"Products one after another are what a solve waits for: blocks of {slashed(WIDTHS)} take {passes} of the "
        f"passes of PROPACK (SmolLM2 and Gemma 3 270m, tol 1e-3), for {products} of its products "
        "([docs/peers.md](docs/peers.md))."
    )


def of_passes() -> str:
    """Return what became of the aims for passes, and the narrowest blocks that reach them on both models."""
    ratios = {name: _of_peer(model) for model, name in MODELS.items()}
    shown = "; ".join(
        f"{name} " + " / ".join(_against([of[width]["passes"]], [aim], float.__le__) for width, aim in _wanted())
        for name, of in ratios.items()
    )
    widths = sorted(set.intersection(*(set(of) for of in ratios.values())))
    enough = [next(w for w in widths if all(of[w]["passes"] <= aim for of in ratios.values())) for aim in PASSES]
    cost = " / ".join(f"{max(of[width]['products'] for of in ratios.values()):.2f}" for width in enough)
    carried = (max(of[width]["products"] / of[width]["passes"] for of in ratios.values()) for width in enough)
    return fill(
        f"At most {slashed(PASSES)} of the passes of PROPACK with blocks of {slashed(WIDTHS)} at tol 1e-3 "
        f"([peers.md](peers.md)): {shown}. Blocks of {slashed(enough)} reach them on both, with {cost} times its "
        f"products ({PRODUCTS} were allowed for the latter two): as blocks shrink, a pass of theirs carries "
        f"{slashed(f'{columns:.1f}' for columns in carried)} columns on average.",
        120,
        break_on_hyphens=False,
    )


def slashed(values: Iterable[object]) -> str:
    """Return values side by side."""
    return " / ".join(map(str, values))


def _wanted() -> Iterator[tuple[int, float]]:
    return zip(WIDTHS, PASSES, strict=True)


def _of_peer(model: str) -> dict[int, dict[str, float]]:
    """Return passes and products at tol 1e-3 in multiples of those of the best peer, by width."""
    figures = {solver: by_tol["0.001"] for solver, by_tol in read("peers.json")[model].items()}
    means = {
        solver: {which: mean(one[which] for one in found) for which in ("passes", "products")}
        for solver, found in figures.items()
        if solver == PEER or solver.startswith("ours")
    }
    return {
        int(solver.split()[-1]): {which: value / means[PEER][which] for which, value in of.items()}
        for solver, of in means.items()
        if solver != PEER
    }

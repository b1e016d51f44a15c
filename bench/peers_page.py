"""The count of peers as a page: ``docs/peers.md``."""

from statistics import mean
from typing import Any

_ABOUT = """# Peers at equal accuracy

Made by `python -m bench.peers`. k = 8; mean over the matrices of a set (tokens of "The bridge out of Marin is the", or
spectra) of **products / sequential passes**: columns both ways, and calls one after another. Every solver is held to
the same true residual max_j max(‖A v - σ u‖, ‖Aᵀ u - σ v‖) / σ_j ≤ tol, with the right set of values, on the same
matrix in float64. Ours is told the tolerance; a peer's own tolerance, or its number of iterations, is chosen in
hindsight for each matrix, the cheapest that gets there. Ours counts everything, at width 1 also six products that look
for missed values; probes for completeness are apart. A width of ours is that of the widest block: blocks shrink as
triplets converge.

Every solver runs on the matrices of the models, at three tolerances, and on the spectra, at 1e-3. The widened matrices
have the values of those of the models: they show only that counts do not grow with the size, so ours, PROPACK, PRIMME,
CoLA and matfree alone run on them, at 1e-3.

Peers come by `pip install '.[peers]' --constraint constraints.txt` (PRIMME is built, and needs libopenblas-dev). CoLA's
release has no SVD: its Lanczos runs on AᵀA. matfree takes a number of steps and has no test of convergence: the number
that is enough is what is counted.
"""
_BEST = "scipy propack"


def page(figures: dict[str, Any]) -> str:
    """Return the page."""
    return "\n\n".join([_ABOUT.strip(), *(table(found, name) for name, found in figures.items())]) + "\n"


def table(figures: dict[str, Any], name: str) -> str:
    """Return a table of mean products and sequential passes; ours also as multiples of those of PROPACK."""
    tolerances = list(next(iter(figures.values())))
    lines = [
        f"| {name} | " + " | ".join(f"tol {tol}" for tol in tolerances) + " |",
        "|---" * (len(tolerances) + 1) + "|",
    ]
    for solver, by_tol in figures.items():
        cells = []
        for tol, found in by_tol.items():
            made = [one for one in found if one is not None]
            if not made:
                cells.append("not reached")
                continue
            cell = f"{_mean(made, 'products'):.1f} / {_mean(made, 'passes'):.1f}"
            if len(made) < len(found):
                cell += f" ({len(found) - len(made)} of {len(found)} not reached)"
            best = figures.get(_BEST, {}).get(tol, [None])
            if solver.startswith("ours") and len(made) == len(found) and None not in best:
                cell += " = " + " / ".join(
                    f"{_mean(made, what) / _mean(best, what):.2f}×" for what in ("products", "passes")
                )
            cells.append(cell)
        lines.append(f"| {solver} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(found: list[dict[str, float]], what: str) -> float:
    return mean(one[what] for one in found)

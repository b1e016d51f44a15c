"""Write docs/figures.md and the figures of README from bench/results: ``python -m bench.figures_page``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from bench.aims import PASSES, aims, of_passes, of_waits, slashed
from bench.memory_page import table
from bench.records import (
    AUTOGRAD,
    DENSE,
    MISSING,
    MODELS,
    RECORDS,
    WIDENINGS,
    Record,
    both_ways,
    of_machines,
    row_of,
    sweeps_of_two_blocks,
)
from detjac_lanczos.cli.process import exit_code

TOP = Path(__file__).parents[1]
PAGE, README = TOP / "docs" / "figures.md", TOP / "README.md"
METHODS = {"lanczos": "ours", "autograd": "(a)", "dense": "(a′)"}

Cell = Callable[[Record], str]

HEAD = """# Figures of the bench

Made by `python -m bench.figures_page` from what `make bench` writes: accuracy before time, everything side by side in
one run. Top 8 of every token of "The bridge out of Marin is the", float32, tol 1e-3, on two cores each of three shared
servers, on the Xeon with others busy beside it: read the ratios, and those as good to a tenth. Times are medians of
the runs that stand beside them, or of three; (b) ran once, beside runs of ours of its own.

- **(a)**: every J by autograd through detached modules, and its SVD, as the paper does it. Autograd takes torch's
  default float32 library, which is slow on the Zen 5 and fast on the other two; our sweeps take the faster one that is
  found on each.
- **(a′)**: every J written out by our own sweeps, and its SVD.
- **(b)**: scipy's `svds` (PROPACK) on jvp and vjp, token by token.

The values of ours, of (a) and of (a′) are held against dense float64 SVDs of the same Jacobians. A row-sweep is
one row through all layers once: to write J out for n tokens takes n·d.

{machines}
"""

AUTO = """\
What it chose, and its time over that of the better of Lanczos and dense: 1 is best. Short prompts go through Lanczos;
from about 24 tokens on, to write all Jacobians out in one sweep is cheaper, and `auto` does that and says so."""

NOTES = """\
Float32 weights that are mapped from a file begin where its header ends, and off a cache line transposed products of up
to 84 rows take longer on the Zen 5; and in pages of 4 kB those of wide matrices do. `load_model` moves float32 weights
to a boundary, in huge pages where Linux has them; those of a live model stay where they are."""

FAMILIES = """\
A model of each kind of family at d ≥ 1,024 with eight blocks and random weights, 112 and 224 rows; forward /
transposed. The last column is a run with two blocks, where what a sweep does once, at its ends, counts for more.
gpt-oss reads its alternating expert rows whole for the half in use ([families.md](families.md))."""


def main() -> int:
    """Write the page, and put README's figures between their marks."""
    argparse.ArgumentParser(prog="python -m bench.figures_page", description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def page() -> str:
    """Return docs/figures.md."""
    found = of_machines()
    machines = [
        [name, f"`{file}`", record["machine"]["threads"], record["machine"]["torch"]]
        for (name, file), record in zip(RECORDS.items(), found, strict=True)
    ]
    parts = [
        HEAD.format(machines=table(["machine", "record in `bench/results`", "threads", "torch"], machines)).rstrip(),
        "## The job",
        by_machine(_roads(), found),
        '## `method="auto"` against the better of both',
        AUTO,
        by_machine(_auto(found), found),
        "## A sweep against its GEMMs alone",
        by_machine(_floor(found), found),
        NOTES,
        FAMILIES,
        _families(found),
        "## Memory, seeds and the second claim",
        by_machine([*_memory(found), *_seeds(found), *_completeness()], found),
        "## Aimed at and not reached",
        "What is not reached is bold.",
        table(["", "aim", *RECORDS], [[what, aim, *cells] for what, aim, cells in aims(found)]),
        of_passes(),
    ]
    return "\n\n".join(parts) + "\n"


def renewed(readme: str) -> str:
    """Return README with its figures as they are in the records."""
    found = of_machines()
    missed = [f"{what}: {aim}" for what, aim, cells in aims(found) if "**" in "".join(cells)]
    if "**" in of_passes():
        missed.append(f"passes of PROPACK: at most {slashed(PASSES)}")
    said = f"Aimed at, and not reached everywhere ([docs/figures.md](docs/figures.md)): {'; '.join(missed)}."
    text = "\n\n".join([_short(found), *(fill(each, 120, break_on_hyphens=False) for each in (of_waits(), said))])
    return re.sub(
        r"(<!-- figures: written by python -m bench.figures_page -->\n\n).*?(\n\n<!-- figures: end -->)",
        lambda marks: marks[1] + text + marks[2],
        readme,
        flags=re.DOTALL,
    )


def by_machine(rows: Iterable[tuple[str, Cell]], found: Sequence[Record]) -> str:
    """Return a table with a column for each machine; what its record lacks is a dash."""
    return table(["", *RECORDS], [[name, *(_filled(cell, record) for record in found)] for name, cell in rows])


def _filled(cell: Cell, record: Record) -> str:
    try:
        return cell(record)
    except (KeyError, StopIteration):
        return MISSING


def _roads() -> Iterator[tuple[str, Cell]]:
    for widening, name in WIDENINGS.items():

        def of(show: Callable[[Record], str], widening: int = widening) -> Cell:
            return lambda record: show(row_of(record["roads"], widening=widening))

        yield f"**{name}**: row-sweeps as a share of n·d", of(lambda road: f"{road['share of dense']:.3f}")
        for title, key in (("residual", "residual"), ("value error", "value error")):
            shown = of(lambda road, key=key: _each(road["accuracy"], lambda part: f"{part[key]:.1e}"))
            yield f"largest {title}, {_names()}", shown
        yield f"seconds (runs), {_names()}", of(_seconds)
        yield "time against (a)", of(lambda road: f"{road[AUTOGRAD]:.2f}×")
        yield "time against (a′)", of(lambda road: f"{road[DENSE]:.2f}×")
        if widening == 1:
            yield "seconds, ours / (b)", lambda record: "{ours:.2f} / {glued:.1f}".format(**record["glued"])
            yield "time against (b)", lambda record: f"{record['glued']['ratio']:.1f}×"
            yield "residual of (b), first token", lambda record: f"{record['glued']['residual']:.1e}"
    yield (
        "**Gemma 3 270m**: row-sweeps as a share of n·d",
        lambda record: f"{record['gemma']['share']:.3f}",
    )
    yield "largest residual, ours", lambda record: f"{record['gemma']['residual']:.1e}"


def _names() -> str:
    return " / ".join(METHODS.values())


def _each(of: Record, show: Callable[[Any], str]) -> str:
    return " / ".join(show(of[method]) for method in METHODS)


def _seconds(road: Record) -> str:
    return " / ".join(f"{road['seconds'][name]:.2f} ({len(road['all seconds'][name])})" for name in METHODS)


def _auto(found: Sequence[Record]) -> Iterator[tuple[str, Cell]]:
    for tokens in _distinct(found, "auto", "tokens"):
        yield (
            f"{tokens} tokens",
            lambda record, tokens=tokens: "{chosen}, {ratio:.2f}".format(**row_of(record["auto"], tokens=tokens)),
        )


def _floor(found: Sequence[Record]) -> Iterator[tuple[str, Cell]]:
    for rows in _distinct(found, "floor", "rows"):
        yield f"{rows} rows, forward / transposed", lambda record, rows=rows: _sweep(row_of(record["floor"], rows=rows))


def _families(found: Sequence[Record]) -> str:
    columns = [record.get("families", []) for record in found] + [sweeps_of_two_blocks()["families"]]
    heads = [
        ", ".join([name, *dict.fromkeys(f"{row['clock']} clock, {row['threads']} threads" for row in rows)])
        for name, rows in zip(RECORDS, columns, strict=False)
    ]
    lines = []
    for family in dict.fromkeys(row["family"] for rows in columns for row in rows):
        cells = []
        for rows in columns:
            mine = sorted((row for row in rows if row["family"] == family), key=lambda row: row["rows"])
            cells.append("; ".join(map(_sweep, mine)) or MISSING)
        lines.append([family, *cells])
    return table(["112 rows; 224 rows", *heads, "Xeon, two blocks, processor time of one thread"], lines)


def _memory(found: Sequence[Record]) -> Iterator[tuple[str, Cell]]:
    yield (
        "extra memory at {tokens} tokens, width {width}, ours / autograd".format(**found[0]["memory"]),
        lambda record: "{ours:.0f} MB / {autograd:.0f} MB = {ratio:.2f}".format(**record["memory"]),
    )


def _seeds(found: Sequence[Record]) -> Iterator[tuple[str, Cell]]:
    for dtype in _distinct(found, "seeds", "dtype"):

        def of(text: str, dtype: str = dtype) -> Cell:
            return lambda record: text.format(**row_of(record["seeds"], dtype=dtype))

        yield f"**seeds × tokens**, {dtype}: converged", of("{converged} of {solves} at tol {tol:g}")
        yield "largest value error", of("{value_error:.1e}")
        yield "largest true residual", of("{true_residual:.1e}")
        yield "a residual understated by at most", of("{understated:.1e}")


def _completeness() -> Iterator[tuple[str, Cell]]:
    for model, name in MODELS.items():

        def of(show: Callable[[list[Record]], str], model: str = model) -> Cell:
            return lambda record: show(record["completeness"][model])

        yield (
            f"**second claim**, {name} (δ = 1e-6): COMPLETE",
            of(lambda rows: f"{sum(row['complete'] for row in rows)} of {len(rows)} tokens"),
        )
        yield "its products, of those of the search", of(lambda rows: _span(row["share"] for row in rows))
        for count in ("16", "24"):
            shown = of(lambda rows, count=count: f"{max(row['bound'][count] for row in rows):.2f}×")
            yield f"BOUND on σ_9 after {count} products, worst", shown


def _short(found: Sequence[Record]) -> str:
    """Return README's table: a column for each widening, machines side by side."""
    roads = [[row for record in found for row in record["roads"] if row["widening"] == r] for r in WIDENINGS]
    work = [f"{rows[0]['share of dense']:.2f}" for rows in roads]
    work[0] += f" (Gemma 3 270m: {next(r['gemma']['share'] for r in found if 'share' in r.get('gemma', {})):.2f})"
    errors = [f"{max(row['accuracy']['lanczos']['value error'] for row in rows):.0e}" for rows in roads]
    where = " / ".join(RECORDS)

    def ratios(key: str) -> list[str]:
        return [
            " / ".join(
                _filled(lambda record, r=r: f"{row_of(record['roads'], widening=r)[key]:.2g}×", one) for one in found
            )
            for r in WIDENINGS
        ]

    glued = " / ".join(_filled(lambda record: f"{record['glued']['ratio']:.2g}×", record) for record in found)
    return table(
        ["", *WIDENINGS.values()],
        [
            ["work, row-sweeps as a share of dense J's n·d", *work],
            [
                "largest error of a singular value, against a dense float64 SVD",
                *(e.replace("e-0", "e-") for e in errors),
            ],
            [f"faster than (a), dense J by autograd + SVD; {where}", *ratios(AUTOGRAD)],
            [f"faster than (a′), dense J by our own sweeps + SVD; {where}", *ratios(DENSE)],
            [f"faster than (b), scipy's PROPACK on jvp/vjp; {where}", glued, "", ""],
        ],
    )


def _distinct(found: Sequence[Record], part: str, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for record in found for row in record.get(part, [])))


def _sweep(row: Record) -> str:
    return " / ".join(f"{ratio:.2f}" for ratio in both_ways(row))


def _span(values: Iterable[float]) -> str:
    found = list(values)
    return f"{min(found):.2f} to {max(found):.2f}"


if __name__ == "__main__":
    sys.exit(exit_code(lambda _: main()))

"""Write the measured tables of docs/memory.md from bench/results: ``python -m bench.memory_page``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "memory.md"
MIB = 1 << 20


def main() -> None:
    """Replace what lies between the marks of each table."""
    argparse.ArgumentParser(prog="python -m bench.memory_page", description=__doc__).parse_args()
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(text: str) -> str:
    """Return the page with every table as its figures are."""
    for name, (file, table) in TABLES.items():
        made = table(json.loads((TOP / "bench" / "results" / file).read_text(encoding="utf-8")))
        text = re.sub(
            rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)",
            lambda found, made=made: found[1] + made + found[2],  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def table(headings: list[str], rows: list[list[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def peaks(figures: dict[str, Any]) -> str:
    """Tabulate predicted and measured peaks of SmolLM2 under budgets."""
    rows = []
    for tokens, found in sorted(figures["smollm2"]["peaks"].items(), key=lambda item: int(item[0])):
        for row in found:
            sizes = [row[f"{key}_MiB"] for key in ("resident", "offloaded", "predicted", "measured")]
            held = (
                "none, bit for bit"
                if row.get("equal bits")
                else f"{row['difference']:.1e}"
                if "difference" in row
                else ""
            )
            rows.append([tokens, f"{row['budget_MiB']:.0f}", *(f"{s:.1f}" for s in sizes), f"{row['ratio']:.3f}", held])
    headings = ["tokens", "budget", "in memory", "in files", "peak, predicted", "peak, measured", "ratio", "difference"]
    return table(headings, rows)


def jobs(figures: dict[str, Any]) -> str:
    """Tabulate predicted over measured peaks of whole jobs, by precision and length."""
    ways = {"joint": "all jointly", "tokens": "every token"}
    lengths = sorted({int(name.split()[2]) for name in figures})
    rows = []
    for kind, way in dict.fromkeys(tuple(name.split()[:2]) for name in figures):
        found = [figures.get(f"{kind} {way} {length}") for length in lengths]
        cells = [f"{row['predicted'] / row['measured']:.3f}" if row else "" for row in found]
        rows.append([kind, ways[way], *cells])
    return table(["precision", "tokens", *map(str, lengths)], rows)


def unbounded(figures: dict[str, Any]) -> str:
    """Tabulate differences of products from those of a network without a budget."""
    rows = []
    for model, mine in figures.items():
        for tokens, found in mine.get("unbounded", {}).items():
            for row in found[1:]:
                ways = [", ".join(f"{way} {b}" for way, b in row["plan"][kind].items()) for kind in ("mixing", "gates")]
                difference = "none, bit for bit" if row["equal bits"] else f"{row['difference']:.1e}"
                rows.append([model, tokens, row["budget"], *ways, difference])
    return table(["model", "tokens", "budget", "attention weights", "gates", "difference"], rows)


def packed(figures: dict[str, Any]) -> str:
    """Tabulate what the main job allocates above a model in NF4."""
    keys = ["above it, measured", "above it, predicted", "one decoded block", "of which decoded at a time"]
    keys += ["coefficients and streams", "rows and bases, predicted"]
    rows = []
    for name, row in figures.items():
        sizes = [row["bytes"]["packed model"], *(row["bytes"][key] for key in keys)]
        rows.append([name, row["tokens"], *(f"{size / MIB:.1f}" for size in sizes)])
    return table(["model", "tokens", "packed model", *keys], rows)


def large(figures: dict[str, Any]) -> str:
    """Tabulate the peaks of a Llama of the shapes of 70B with few blocks."""
    rows = []
    for blocks, row in sorted(figures["rows"].items(), key=lambda item: int(item[0])):
        count = row["bytes"]
        sizes = [count["weights"], count["others, predicted"], count["others, measured"]]
        shares = [f"{row['ratio of the others']:.4f}", f"{row['ratio with the weights']:.4f}"]
        rows.append([blocks, row["passes"], *(f"{size / 1e6:.1f}" for size in sizes), *shares])
    headings = ["blocks", "passes", "packed weights, MB", "others, predicted", "others, measured"]
    return table([*headings, "ratio", "ratio with the weights"], rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "peaks": ("schedule.json", peaks),
    "jobs": ("jobs.json", jobs),
    "unbounded": ("schedule.json", unbounded),
    "packed": ("packed.json", packed),
    "large": ("large.json", large),
}

if __name__ == "__main__":
    main()

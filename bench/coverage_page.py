"""The count of claims as a page: ``docs/coverage.md``."""

from collections import Counter
from typing import Any

from scipy.stats import binom

_WIDTHS = (1, 2, 4, 8)

_UNLIKELY = 1e-4
"""Failures of a kind in one spectrum that are less likely than this at the stated δ are a defect."""

_ABOUT = """Every spectrum with k in {{1, 8, 20}}, tol in {{1e-3, 1e-6}} and block widths 1, 2, 4 and 8, with a claim of
completeness (at δ = {delta:g}, so large that failures can be counted) and without one. Sizes from 64 to 600 (half below
85), shapes 1:1, 2:1 and 1:2, scales 1 and 1e±30, float32 and float64 follow from the seed. *hidden* starts from exact
vectors that leave one leading triplet out; *duplicates* has one value ten times. A *missed value* is one that a solve
without probes lacks, and no false claim: the triplets are what TRIPLETS says, but not those of σ_1..σ_k, which only
COMPLETE claims."""


def page(record: dict[str, Any]) -> tuple[str, bool]:
    """Return the page, and whether no claim has failed more often than it may."""
    rows: dict[str, dict[int, Counter[str]]] = {}
    for name, count in record["cases"].items():
        spectrum, _, _, width = name.split(" | ")
        by_width = rows.setdefault(spectrum, {w: Counter() for w in _WIDTHS})
        by_width[int(width.split()[1])].update(count)
    totals = {spectrum: sum(by_width.values(), Counter()) for spectrum, by_width in rows.items()}
    sound = all(_sound(count, record["delta"]) for count in totals.values())
    seeds, wanted = {spectrum: len(record["seeds"][spectrum]) for spectrum in rows}, record["seeds wanted"]
    done = min(seeds.values())
    lines = [
        "# Coverage of the claims",
        "",
        f"Made by `make coverage`: {f'{done} of {wanted}' if done < wanted else wanted} seeds"
        + (" at least (**partial**)" if done < wanted else "")
        + f", {sum(count['solves'] for count in totals.values()):,} solves with torch {record['torch']}.",
        "",
        _ABOUT.format(delta=record["delta"]),
        "",
        "| spectrum | solves | wrong status | false TRIPLETS at width 1, 2, 4, 8 | missed values at width 1, 2, 4, 8 "
        "| false BOUND | false COMPLETE |",
        "|---|---|---|---|---|---|---|",
    ]
    for spectrum, by_width in rows.items():
        total = totals[spectrum]
        false, missed = (
            ", ".join(str(by_width[width][what]) for width in _WIDTHS) for what in ("false TRIPLETS", "missed values")
        )
        title = spectrum if seeds[spectrum] >= wanted else f"{spectrum} ({seeds[spectrum]} seeds)"
        lines.append(
            f"| {title} | {total['solves']:,} | {total['wrong status']} | {false} | {missed} "
            f"| {_share(total, 'BOUND')} | {_share(total, 'COMPLETE')} |"
        )
    verdict = (
        "No claim failed more often than it may: no false TRIPLETS, no wrong status, and no count of false BOUND or "
        f"COMPLETE in a spectrum that has a probability below {_UNLIKELY:g} at δ."
        if sound
        else "**A claim failed more often than it may.**"
    )
    notes = ["", record["note"]] if "note" in record else []
    return "\n".join([*lines, "", verdict, *notes, ""]), sound


def _share(count: Counter[str], claim: str) -> str:
    return f"{count[f'false {claim}']} of {count[claim]:,}" if count[claim] else "–"


def _sound(count: Counter[str], delta: float) -> bool:
    if count["false TRIPLETS"] or count["wrong status"]:
        return False
    return all(
        binom.sf(count[f"false {claim}"] - 1, count[claim], delta) > _UNLIKELY for claim in ("BOUND", "COMPLETE")
    )

"""The table of surveys in ``docs/solvers.md``, between two marks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- survey: written by python -m bench.survey -->\n", "<!-- survey: end -->\n"
_HEAD = (
    "tokens",
    "rows, of dense",
    "error of σ_1, estimate: median / 90th percentile / worst",
    "lower bound",
    "upper bound: median above σ_1",
    "outside their interval",
    "estimates off by more than 5 %",
    "of these not flagged",
    "flagged",
    "polished",
    "of these TRIPLETS 8/8",
    "rows of the polish, of dense",
    "largest error of σ_1 after it",
)


def write_table(figures: Mapping[str, Any], page: Path) -> None:
    """Put the table of ``figures``, by number of tokens, between the marks of a page.

    Raises
    ------
    SystemExit
        The page has no marks.
    """
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"{page} has no marks {_BEGIN.strip()} and {_END.strip()}")
    page.write_text(before + begin + table(figures) + end + after)


def table(figures: Mapping[str, Any]) -> str:
    """Return the table, a row for each text."""
    rows = [_row(_HEAD), _row(["---"] * len(_HEAD))]
    for tokens, found in sorted(figures.items(), key=lambda item: int(item[0])):
        polished = found["polished"]
        after = ("–", "–", "–")
        if polished["tokens"]:
            after = (
                str(polished["claims"].get("TRIPLETS 8/8", 0)),
                f"{polished['share of dense rows']:.2f} ({', '.join(polished['methods'])})",
                f"{polished['largest error of σ_1']:.0e}",
            )
        cells = (
            f"{int(tokens):,}",
            f"{found['share of dense rows']:.3f}",
            _spread(found["estimate"]),
            _spread(found["lower bound"]),
            f"{100 * found['median of the upper bound']:.2g} %",
            found["outside the interval"],
            found["above 5 %"],
            found["above 5 % and not flagged"],
            found["flagged"],
            polished["tokens"],
            *after,
        )
        rows.append(_row(cells))
    return "\n".join(rows) + "\n"


def _spread(found: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * found[name]:.2g} %" for name in ("median", "90th percentile", "worst"))


def _row(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"

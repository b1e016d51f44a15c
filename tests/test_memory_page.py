"""docs/memory.md holds what its benchmarks last measured."""

from bench.memory_page import PAGE, renewed


def test_the_tables_are_what_was_measured() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "run `python -m bench.memory_page`"

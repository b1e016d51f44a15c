"""docs/runs.md names every part of a run and nothing else, and its example reads one that was saved."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detjac_lanczos.models import LoadedModel
from detjac_lanczos.operators import detach, mlp, probe
from detjac_lanczos.runs import Run, analyze
from detjac_lanczos.runs.schema import RECORD, Maybe, Pair, Sometimes
from tests.tiny_llama import PROMPT

PAGE = (Path(__file__).parents[2] / "docs" / "runs.md").read_text("utf-8")
_, RECORD_PART, VECTORS_PART = re.split(r"^## (?=run\.json|vectors)", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def runs(run: Run, complete: Run, tiny: LoadedModel) -> list[Run]:
    """Return runs that have every part between them: claims, guards, a survey, embeddings, a probe, parts dropped."""
    embeds = detach(tiny, PROMPT).streams.embeddings[:3]
    rows = probe(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)))
    return [
        run,
        complete,
        analyze(tiny, [PROMPT, "most of the bridge"], 3, method="shared_basis", polish=2),
        analyze(tiny, inputs_embeds=embeds, k=2, target=rows, memory="1MiB"),
        analyze(tiny, input_ids=[1, 2, 3], position_ids=[0, 1, 4], energy=0.5, dtype="bfloat16", certify=None),
        analyze(detach(tiny, PROMPT).replace(drop=mlp(1)), k=2),
    ]


def _rows(part: str) -> Iterator[list[str]]:
    for line in part.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def _named() -> dict[str, str]:
    """Return the parts that the page tells of, with their kinds; no kind for a part that is the title of a section."""
    named: dict[str, str] = {}
    for section in RECORD_PART.split("\n### "):
        title = section.partition("\n")[0]
        places = re.findall(r"`([^`]+)`", title)
        named = {place.rstrip("[]"): "" for place in places} | named
        for names, kind, _ in _rows(section):
            for name in re.findall(r"`([^`]+)`", names):
                named |= {f"{place}.{name}" if place else name: kind for place in places or [""]}
    return named


def _parts(shape: Any, place: str = "", words: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Yield every part of a shape, how it may be missing, and whether it is one that holds no others by name."""
    if isinstance(shape, Maybe | Sometimes):
        yield from _parts(shape.shape, place, (*words, "null" if isinstance(shape, Maybe) else "sometimes"))
    elif isinstance(shape, Pair | list):
        inside = shape.shape if isinstance(shape, Pair) else shape[0]
        yield from _parts(inside, place if isinstance(shape, Pair) else f"{place}[]", words)
    elif isinstance(shape, tuple):
        for part in shape:
            yield from _parts(part, place, words)
    elif isinstance(shape, dict):
        yield place.rstrip("[]"), words, False
        for name, part in shape.items():
            yield from _parts(part, f"{place}.{name}" if place else name)
    else:
        yield place.rstrip("[]"), words, True


def _written(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every part of a record with what it holds."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _written(part, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for part in value:
            yield from _written(part, f"{place}[]")
    else:
        yield place.rstrip("[]"), value


def test_every_part_of_the_schema_has_its_row_and_every_row_its_part() -> None:
    named = _named()
    words, leaves = defaultdict(set), set()
    for place, missing, leaf in _parts(RECORD):
        words[place] |= set(missing)
        leaves |= {place} if leaf else set()
    assert leaves - named.keys() == set()
    for place in words.keys() & named.keys():
        told = {word for word in ("null", "sometimes") if word in named[place]}
        assert told == words[place], place


def test_every_part_that_runs_write_has_its_row_and_every_row_its_part(runs: list[Run]) -> None:
    named, known = _named(), {place: leaf for place, _, leaf in _parts(RECORD)}
    free = tuple(f"{place}." for place, leaf in known.items() if leaf)
    written: set[str] = set()
    for one in runs:
        for place, value in _written(one.record):
            assert place in named or place.startswith(free), place
            assert value is not None or "null" in named[place], place
            written.add(place)
    assert {place for place in named if place not in known} <= written


def test_every_vector_has_its_row_and_every_row_its_vector(runs: list[Run]) -> None:
    told = {}
    for names, shapes, kind, *_ in _rows(VECTORS_PART):
        shape_of = re.findall(r"\(([^)]*)\)", shapes)
        for name, shape in zip(re.findall(r"`([^`]+)`", names), shape_of, strict=True):
            told[name] = (len([size for size in shape.split(",") if size]), kind)
    found = set()
    for one in runs:
        dtype = getattr(torch, one.record["dtype"])
        kinds = {"run": dtype, "solver": torch.promote_types(dtype, torch.float32)}
        for name, value in one.vectors.items():
            place = re.sub(r"\.\d+$", ".P", re.sub(r"\.\d+\.\d+$", ".P.T", name))
            ndim, kind = told[place]
            assert value.ndim == ndim and value.dtype is kinds.get(kind, value.dtype), name
            found.add(place)
    assert found == told.keys()


def test_the_example_reads_a_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert set(re.findall(r"^(?:import|from) (\S+)", example, re.MULTILINE)) == {"json", "numpy", "safetensors.numpy"}
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["length"] == pytest.approx(names["added"]["share"] * names["added"]["captured"] ** 0.5, rel=1e-2)

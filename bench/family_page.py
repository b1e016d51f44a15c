"""The page of families: what is declared, in words of the declarations themselves, and what was measured."""

import inspect
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from detjac_lanczos.frozen import families
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.said import FACTORS, frozen_kinds

HEAD = """# Families

Each family below was held against two oracles that share no code with the library: reverse mode through the model's own
transformers modules with their frozen factors detached, and the same modules run again at x + δ with those factors
pinned to their values at x. The models are tiny and random, every parameter away from its default ({tokens} tokens,
{blocks} blocks, torch {torch}, transformers {transformers}). Every number is measured by the command that writes this
page, `python -m bench.families`, and is the worst of a family: over its tiny models, over every choice of the frozen
factor, over targets (output, residual stream, logits; stream, attention and MLP of each block) and over sources
(embeddings, the stream entering block 1).

**Frozen** is what `freeze="gate"` makes constant; P are the attention weights, with all that leads to them (windows,
rotary embeddings, norms of queries and keys, sinks, softcaps of scores). **Offset** is the share ‖r‖/‖y‖ of what
y = Σ J_i x_i + r owes to biases, learned positions and clamps, from the tiny model with the least to the one with the
most. **J** is the largest error, by Frobenius norm or by entry, relative to J; token by token in float64, over all
tokens at once in float32. A single token's share of a float32 network can be small; what rounding in the forward pass
alone makes of it is in the last columns below: **token**, the largest error of one token's J against reverse mode *in
float64* of the same weights; **reverse**, that of reverse mode in float32; and **sweep**, that of our float32 sweeps
when a float64 pass has given the frozen factors, rounded to float32. So sweeps add little, and the factors of the
float32 pass make the rest. Taken apart by hand on the worst case (Ministral 3, `freeze="up"`; 4.4e-6 on the processor
where that was done): 4.3e-7 with all factors from float64, 2.0e-6 with the attention weights alone; but no step of
theirs is the cause: scores in float64 from float32 queries and keys give 6.0e-6, whole blocks in float64 on the
*stream* of the float32 pass 3.9e-6.

The pass whose factors are frozen takes transformers' *eager* attention and experts: in float32, bfloat16 and float16
its y is, bit for bit, what the model gives when it is set to those (`tests/frozen/test_capture.py`), but for float32
matrices of two million numbers or more, which up to 128 rows multiply in parts where that is faster: as exactly, and
with other bits where torch shares few rows out among threads. Other kinds, such as the default `sdpa`, round elsewhere:
the y of these models then lies 2e-2 away in the worst of them in bfloat16 (4e-2 with experts), 3e-3 in float16, 5e-7 in
float32. `streams.output` holds the one, `streams.model_output` the other; a run's record tells how far Σ J_i x_i + r is
from each.

What a sweep costs beside its GEMMs is in [figures.md](figures.md). gpt-oss alone is far above them: a
matrix of gate and up (8 MB at width 1,024) is read whole for the half that is used, and at 9 GB/s a core the other half
takes 0.47 ms beside the 2.97 that an expert's two GEMMs take for 28 rows (4.14 for 56), so that unless reading hides
behind arithmetic its experts cost at least 1.16 (1.11) times their GEMMs, in place. Taking the rows apart costs torch
2 ms instead, and multiplying by the whole matrix, as up to 32 rows do, 1.1 ms. A forward sweep of 112 rows over two
blocks, operation by operation on one thread (the least of nine times each), is 31.6 ms on 20.2 of GEMMs: 5.9 are the
other half of whole products, 2.8 the taking apart, and 2.7 all else, 13 % as in other families. What torch offers
gains little: pairs of neighbours read as one integer and cut to its lower half are apart in 1.2 ms (a whole sweep:
1.57 for 1.60 forward, 1.39 for 1.40 transposed, 1.48 and 1.40 for 1.53 and 1.46 of 224 rows, for reads that are not
aligned), and 64 to 256 columns at a time, multiplied while they are in the second cache, cost 28 rows what the whole
matrix does. Checkpoints keep these experts in MXFP4, of which only the half in use is decoded.

A class around one of these decoders, such as one that also sees images, is served on text where what it computes there
is its decoder and its head: Gemma 3, Mistral 3, Llama 4, LLaVA and more (`tests/tiny_models/wrappers.py`). A decoder of
no declared family runs through its own modules, if its structure is understood ([undeclared.md](undeclared.md)).

| family | classes of transformers | its own | frozen | offset | J, float64 | J, float32 |
|---|---|---|---|---|---|---|
"""

UNDECLARED = """
## Decoders that no family declares

All other classes that transformers lists for causal language models, built from their own configurations with one set
of small sizes. Those of the table are understood by their structure ([undeclared.md](undeclared.md)), run through their
own modules and pass every self-check. **J** is the largest error of all tokens at once against reverse mode through
detached modules, in float64; a dash where that oracle does not see all that is frozen (GraniteSWA's sinks) or cannot
run: there the self-check stands alone. **Σ**: Σ J_i x_i + r against y. A 0 is equality bit for bit: pinned and detached
modules run the same operations, and what is compared is what they freeze; without biases J x runs those of the pass.

| class | route | J, float64 | Σ, float64 | Σ, float32 |
|---|---|---|---|---|
"""

DETAILS = """
## All figures

**norm** and **entry**: J against reverse mode, as above, by Frobenius norm and by largest entry; **pinned**: J δ
against f(x + δ) − f(x) for δ as long as x; **adjoint**: ⟨u, J v⟩ against ⟨Jᵀ u, v⟩; **Σ**: Σ J_i x_i + r against y.
The models of Llama, Qwen2, Qwen3, Gemma 3 and GPT-2 are also held against a published implementation, the modules as
[LXT](https://pypi.org/project/lxt/) patches them, in `tests/operators/test_oracle_lxt.py`.

"""


def describe(family: Family) -> dict[str, Any]:
    """Return what a family's file says of it, and what its words freeze."""
    kinds = frozen_kinds(family)
    return {
        "about": _docstring(family),
        "frozen": [factor.name for kind, factor in FACTORS.items() if kind in kinds],
    }


def page(found: dict[str, Any]) -> str:
    """Return the page of a record of `bench.families`."""
    rows = found["families"]
    heads = [
        f"{precision}: {name}" for precision in ("64", "32") for name in ("norm", "entry", "pinned", "adjoint", "Σ")
    ] + ["32: token", "32: reverse", "32: sweep"]
    lines = [
        HEAD.format(**found).rstrip("\n"),
        *map(_overview, rows),
        DETAILS.rstrip("\n"),
        "",
        _row(("family", "tiny models × choices", *heads)),
        _row(["---"] * (2 + len(heads))),
        *map(_details, rows),
        *_undeclared(found["undeclared"]),
    ]
    return "\n".join(lines) + "\n"


def _overview(row: dict[str, Any]) -> str:
    double, single = row["float64"], row["float32"]
    return _row(
        (
            row["name"],
            ", ".join(f"`{name}`" for name in row["classes"]),
            row["about"],
            ", ".join(row["frozen"]),
            " to ".join(dict.fromkeys(f"{share:.2f}" if share else "0" for share in row["offset"])),
            f"{max(double['token_norm'], double['token_entry']):.0e}",
            f"{max(single['norm'], single['entry']):.0e}",
        )
    )


def _details(row: dict[str, Any]) -> str:
    rest = ("pinned", "adjoint", "reconstruction")
    figures = [row["float64"][key] for key in ("token_norm", "token_entry", *rest)]
    figures += [row["float32"][key] for key in ("norm", "entry", *rest, "token_truth", "reverse_truth", "swept_truth")]
    return _row((row["name"], f"{len(row['models'])} × {len(row['freeze'])}", *(f"{figure:.1e}" for figure in figures)))


def _undeclared(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield UNDECLARED.rstrip("\n")
    for row in rows:
        if "route" in row:
            figures = (row[key] for key in ("reverse", "reconstruction", "reconstruction32"))
            shown = ("–" if figure is None else f"{figure:.1e}" if figure else "0" for figure in figures)
            yield _row((f"`{row['class']}`", row["route"], *shown))
    for key, said in (
        ("refused", "Refused (for what is in `bench/results/families.json`)"),
        (
            "not_built",
            "Not tried: with this one set of sizes their configurations are refused, or make models that are large or "
            "whose pass fails",
        ),
    ):
        names = [f"`{row['class']}`" for row in rows if key in row]
        yield f"\n{said} ({len(names)}): {', '.join(names)}."


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _docstring(family: Family) -> str:
    """Return what the file that declares a family says of it: the first sentence, without names before a colon."""
    for info in iter_modules(families.__path__, f"{families.__name__}."):
        module = import_module(info.name)
        for name, value in vars(module).items():
            if value is family and re.search(rf"^{name} = ", inspect.getsource(module), re.MULTILINE):
                sentence = " ".join((module.__doc__ or "").split("\n\n")[0].split())
                return sentence.rpartition(": ")[2].rstrip(".")
    raise LookupError(f"no file declares {family.name}")

"""One command for the whole: accuracy first, then ratios within this run.

``python -m bench`` (or ``make bench``, ``detjac bench``) prints a table and writes ``bench/results/bench.json``.
"""

import json
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import detjac_lanczos as dl
from bench import memory
from bench.completeness import completeness
from bench.floor_ratio import ratios
from bench.measure import CLOCKS, in_turns, middle
from bench.methods import Job, autograd, glued, ours, residual, value_error
from bench.processor import processor
from bench.real_jacobians import PROMPT, written_out
from bench.wide_models import WIDE
from bench.widen import widen
from detjac_lanczos.cli import Parser, words
from detjac_lanczos.cli.process import show
from detjac_lanczos.errors import InputError
from detjac_lanczos.runs.folder import write_whole

PARTS = ("roads", "glued", "auto", "floor", "families", "memory", "gemma", "seeds", "completeness")
TOKENS = (7, 16, 24, 32)
_ROWS: dict[str, tuple[str, type]] = {"roads": ("widening", int), "families": ("family", str)}
"""Parts that are measured in rows, and what names a row: where it stands, and its kind."""
_STATE = ("cores", "threads", "torch", "detjac_lanczos")
"""What a record says of all its figures, besides the processor."""
CHECKOUT = Path(__file__).parents[1]
RECORD = Path("bench/results/bench.json")


def main(argv: list[str] | None = None) -> int:
    """Run the parts asked for, print a table, write the figures."""
    parser = Parser(prog="detjac bench", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=_some_of(PARTS))
    parser.add_argument(
        "--widen", type=_counts, default="1,2", help="widenings of SmolLM2 (default: 1,2; 4 needs 20 GB)"
    )
    parser.add_argument("--families", default=",".join(WIDE), help=f"kinds to sweep, {_some_of(WIDE)}")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of the families' sweeps (default: wall)")
    runs = "runs of ours on SmolLM2 itself (default: 5); every other count is fixed"
    parser.add_argument("--repeats", type=words.count, default=5, help=runs)
    parser.add_argument(
        "--out",
        type=Path,
        default=CHECKOUT / RECORD,
        help="where figures go, in place of those of the same parts, widenings and families, or of another machine; "
        "others stay, if they were measured with the same threads and versions "
        f"(default: {RECORD} of the checkout)",
    )
    arguments = parser.parse_args(argv)
    parts, names = arguments.parts.split(","), arguments.families.split(",")
    for what, given, known in (("part", parts, PARTS), ("family", names, WIDE)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {what} {', '.join(sorted(unknown))}; choose from {', '.join(known)}")

    asked = {"roads": arguments.widen, "families": names}
    figures = _figures_so_far(arguments.out, {part: asked.get(part, ()) for part in parts})
    loaded = dl.load_model("smollm2")
    ids = loaded.tokenizer(PROMPT)["input_ids"]
    figures["machine"] = _machine()
    for part in parts:
        if part == "roads":
            for r in arguments.widen:
                row = _time_methods(widen(loaded.model, r), ids, r, arguments.repeats)
                _print_methods(row)
                others = [other for other in figures.get(part, []) if other["widening"] != r]
                figures[part] = sorted([*others, row], key=lambda row: row["widening"])
                _write(figures, arguments.out)
        elif part == "families":
            rows, lines = _families(names, ids, arguments.clock)
            figures[part] = [row for row in figures.get(part, []) if row["family"] not in names] + rows
            show("\n".join(lines))
        else:
            figures[part], lines = _PARTS[part](loaded, ids)
            show("\n".join(lines))
        _write(figures, arguments.out)
    show(f"written: {arguments.out}")
    return 0


def _write(figures: dict[str, Any], out: Path) -> None:
    write_whole(out, json.dumps(figures, indent=1) + "\n")


def _some_of(names: Iterable[str]) -> str:
    return f"comma-separated, of {', '.join(names)} (default: all)"


def _counts(text: str) -> list[int]:
    return [words.count(part) for part in text.split(",")]


def _figures_so_far(out: Path, again: Mapping[str, Container[Any]]) -> dict[str, Any]:
    """Return what an earlier bench on this machine wrote there; those of another one would not be told from its own.

    Nor would those of other threads or versions: they are given up if all are measured ``again`` (parts, each with its
    widenings or families). If some would stay, or the place could not be written, it is refused before hours of work.
    """
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder; make it, or choose another place for --out")
    if not out.exists():
        return {}
    try:
        figures = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{out} holds no figures of a bench ({error}); choose another place for --out") from None
    if not isinstance(figures, dict) or not isinstance(before := figures.get("machine", {}), dict):
        raise InputError(f"{out} holds no figures of a bench; choose another place for --out")
    now = _machine()
    if before.get("name") != now["name"]:
        return {}
    changed = [f"{what} {before.get(what)}, now {now[what]}" for what in _STATE if before.get(what) != now[what]]
    try:
        kept = [part for part, found in figures.items() if part != "machine" and _stays(part, found, again)]
    except (KeyError, TypeError):
        raise InputError(f"{out} holds no figures of a bench; choose another place for --out") from None
    if changed and kept:
        raise InputError(
            f"{out} would keep {', '.join(kept)} of a run with {'; '.join(changed)}: choose another place for --out, "
            "or measure all that it holds again"
        )
    return {} if changed else figures


def _stays(part: str, found: Any, again: Mapping[str, Container[Any]]) -> bool:
    place, kind = _ROWS.get(part, ("", object))
    named = [row[place] for row in found] if part in _ROWS else []
    if not all(type(name) is kind for name in named):
        raise TypeError(f"a row of {part} is named by no {kind.__name__}")
    return part not in again or any(name not in again[part] for name in named)


def _time_methods(model: Any, ids: list[int], r: int, repeats: int) -> dict[str, Any]:
    """Time the main job, (a) dense by autograd, (a′) dense by our sweeps; accuracy against dense float64 SVDs first."""
    job = Job(model, ids)
    truth = written_out(job.jacobians())
    triplets, results = ours(job, "lanczos")
    by_autograd = autograd(job)
    by_dense, _ = ours(job, "dense")
    accuracy = {
        name: {
            "residual": max(residual(j, t) for j, t in zip(truth, found, strict=True)),
            "value error": max(value_error(j, t) for j, t in zip(truth, found, strict=True)),
        }
        for name, found in (("lanczos", triplets), ("autograd", by_autograd), ("dense", by_dense))
    }
    methods = {
        "lanczos": lambda: ours(job, "lanczos"),
        "autograd": lambda: autograd(job),
        "dense": lambda: ours(job, "dense"),
    }
    slow = 1 if r > 2 else 2 if r == 2 else 3
    seconds = in_turns(methods, {"lanczos": repeats if r == 1 else 3, "autograd": slow, "dense": slow})
    times = {name: middle(s) for name, s in seconds.items()}
    d = model.config.hidden_size
    sweeps = sum(result.work.row_sweeps for result in results)
    return {
        "widening": r,
        "hidden size": d,
        "seconds": times,
        "all seconds": seconds,
        "accuracy": accuracy,
        "status": [str(result.status) for result in results],
        "row-sweeps": sweeps,
        "share of dense": sweeps / (len(ids) * d),
        "ratio (a)": times["autograd"] / times["lanczos"],
        "ratio (a')": times["dense"] / times["lanczos"],
    }


def _print_methods(row: dict[str, Any]) -> None:
    seconds, accuracy = row["seconds"], row["accuracy"]
    show(f"SmolLM2 ×{row['widening']} (d = {row['hidden size']}), top 8 of every token, tol 1e-3")
    for name, label in (("lanczos", "ours"), ("autograd", "(a) autograd + SVD"), ("dense", "(a′) our sweeps + SVD")):
        show(
            f"  {label:22s} {seconds[name]:7.2f} s   residual {accuracy[name]['residual']:.1e}   "
            f"values {accuracy[name]['value error']:.1e}"
        )
    against_a, against_dense = row["ratio (a)"], row["ratio (a')"]
    show(
        f"  against (a) {against_a:.2f}×, (a′) {against_dense:.2f}×; {row['row-sweeps']:.0f} row-sweeps = "
        f"{row['share of dense']:.3f} of dense"
    )


def _glued(loaded: Any, ids: list[int]) -> tuple[dict[str, float], list[str]]:
    job = Job(loaded.model, ids)
    truth = written_out(job.jacobians())
    tokens = list(range(len(ids)))
    found = glued(job, tokens[:1], job.tol)
    methods = {"ours": lambda: ours(job, "lanczos"), "glued": lambda: glued(job, tokens, job.tol)}
    seconds = {name: middle(s) for name, s in in_turns(methods, {"ours": 3, "glued": 1}).items()}
    row = {
        **seconds,
        "ratio": seconds["glued"] / seconds["ours"],
        "residual": residual(truth[0], found[0]),
    }
    return row, [
        "scipy svds (PROPACK) on jvp/vjp: {glued:.1f} s, {ratio:.1f}× ours (residual {residual:.1e})".format(**row)
    ]


def _auto(loaded: Any, ids: list[int]) -> tuple[list[dict[str, Any]], list[str]]:
    rows = [_auto_at(loaded, n) for n in TOKENS]
    line = (
        "auto at {tokens:2d} tokens: {auto:.2f} s ({chosen}); lanczos {lanczos:.2f} s, dense {dense:.2f} s; "
        "auto / best {ratio:.2f}"
    )
    return rows, [line.format(**row) for row in rows]


def _auto_at(loaded: Any, tokens: int) -> dict[str, Any]:
    ids = loaded.tokenizer(memory.TEXT)["input_ids"][:tokens]
    job = Job(loaded.model, ids)
    methods = {name: (lambda name=name: ours(job, name)) for name in ("auto", "lanczos", "dense")}
    chosen = ours(job, "auto")[1][0].method
    times = {name: middle(s) for name, s in in_turns(methods, dict.fromkeys(methods, 3)).items()}
    return {"tokens": tokens, "chosen": chosen, **times, "ratio": times["auto"] / min(times["lanczos"], times["dense"])}


_SWEEP = (
    "sweep of {rows:3.0f} rows: forward {forward:.1f} ms = {forward_ratio:.2f}× its GEMMs, "
    "transposed {transposed:.1f} ms = {transposed_ratio:.2f}×"
)


def _floor(loaded: Any, ids: list[int]) -> tuple[list[dict[str, float]], list[str]]:
    rows = ratios(loaded.model, ids, widths=(2, 4, 8))
    return rows, [_SWEEP.format(**row) for row in rows]


def _families(names: list[str], ids: list[int], clock: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Run sweeps of wide random models, one of each kind of family, over a prompt as long."""
    prompt = list(range(len(ids)))
    how = {"clock": clock, "threads": torch.get_num_threads()}
    rows = [
        {"family": name, **how, **row}
        for name in names
        for row in ratios(WIDE[name](), prompt, widths=(4, 8), clock=clock)
    ]
    return rows, [("{family:11s} " + _SWEEP).format(**row) for row in rows]


def _memory(loaded: Any, ids: list[int]) -> tuple[dict[str, float], list[str]]:
    tokens, width = 512, 8
    extra = {method: memory.extra(method, tokens, width) / 1e6 for method in ("ours", "autograd")}
    row = {"tokens": tokens, "width": width, **extra, "ratio": extra["ours"] / extra["autograd"]}
    line = (
        "extra memory at {tokens} tokens, width {width}: ours {ours:.0f} MB, autograd {autograd:.0f} MB, "
        "ratio {ratio:.2f}"
    )
    return row, [line.format(**row)]


def _gemma(loaded: Any, ids: list[int]) -> tuple[dict[str, Any], list[str]]:
    try:
        gemma = dl.load_model("gemma3-270m")
    except dl.DetjacError as error:
        return {"left out": str(error)}, [f"Gemma 3 270m left out: {error}"]
    prompt = gemma.tokenizer(PROMPT)["input_ids"]
    job = Job(gemma.model, prompt)
    triplets, results = ours(job, "lanczos")
    sweeps = sum(result.work.row_sweeps for result in results)
    row = {
        "row_sweeps": sweeps,
        "share": sweeps / (len(prompt) * gemma.model.config.hidden_size),
        "residual": max(residual(j, t) for j, t in zip(written_out(job.jacobians()), triplets, strict=True)),
        "status": [str(result.status) for result in results],
    }
    line = "Gemma 3 270m: {row_sweeps:.0f} row-sweeps = {share:.3f} of dense, residual {residual:.1e}"
    return row, [line.format(**row)]


def _completeness(loaded: Any, ids: list[int]) -> tuple[dict[str, Any], list[str]]:
    """Measure the second claim of the certificate on every token of both embedded models."""
    rows: dict[str, Any] = {"smollm2": completeness(loaded.model, ids)}
    try:
        gemma = dl.load_model("gemma3-270m")
        rows["gemma3-270m"] = completeness(gemma.model, gemma.tokenizer(PROMPT)["input_ids"])
    except dl.DetjacError as error:
        rows["left out"] = str(error)
    lines = []
    for name in (name for name in rows if name != "left out"):
        for row in rows[name]:
            bound = ", ".join(f"{value:.2f} after {count}" for count, value in row["bound"].items())
            lines.append(
                f"{name} {row['token']}: τ / σ_9 {bound}; {row['probe products']} products = {row['share']:.2f} of the "
                f"search's {row['search products']}, {'COMPLETE' if row['complete'] else 'BOUND'}"
            )
    return rows, lines


def _seeds(loaded: Any, ids: list[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare singular values and residuals over many seeds with a dense float64 SVD of the same Jacobians."""
    rows = []
    for dtype, tol, seeds in (("float32", 1e-3, 20), ("float64", 1e-6, 3)):
        model = loaded.model if dtype == "float32" else dl.load_model("smollm2", dtype=dtype).model
        batch = dl.detach((model, None), input_ids=ids).jacobians()
        truth = written_out(batch)
        solves = [dl.svd_batch(batch, k=8, tol=tol, method="lanczos", seed=seed) for seed in range(seeds)]
        pairs = [(j, (r.U, r.S, r.V), r) for solve in solves for j, r in zip(truth, solve, strict=True)]
        rows.append(
            {
                "dtype": dtype,
                "tol": tol,
                "solves": len(pairs),
                "converged": sum(r.converged for _, _, r in pairs),
                "value_error": max(value_error(j, t) for j, t, _ in pairs),
                "true_residual": max(residual(j, t) for j, t, _ in pairs),
                "understated": max(residual(j, t) - float(r.relative.max()) for j, t, r in pairs),
                "share": sum(r.work.row_sweeps for _, _, r in pairs) / seeds / (len(ids) * model.config.hidden_size),
            }
        )
    line = (
        "{solves} solves in {dtype} at tol {tol:.0e}: {converged} converged, largest value error {value_error:.1e}, "
        "true residual {true_residual:.1e}, understated by at most {understated:.1e}, {share:.3f} of dense"
    )
    return rows, [line.format(**row) for row in rows]


_PARTS = {
    "glued": _glued,
    "auto": _auto,
    "floor": _floor,
    "memory": _memory,
    "gemma": _gemma,
    "seeds": _seeds,
    "completeness": _completeness,
}


def _machine() -> dict[str, Any]:
    return {
        **processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "detjac_lanczos": dl.__version__,
    }

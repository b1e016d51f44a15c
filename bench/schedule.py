"""Plans against reality: predicted and measured peaks of memory, and what making coefficients again costs.

``python -m bench.schedule`` prints two tables and writes ``bench/results/schedule.json``, row by row. Products of every
budget are held against those of the smallest one. With ``--resume`` rows that were measured stay, where today's plan is
theirs; their predictions are made anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import detjac_lanczos as dl
from bench.allocations import with_peak
from detjac_kernels import roads
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.schedule import make_plan

SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Five budgets: shares of the way from the smallest plan to everything in memory, or to `_MOST` where that is less."""

_MOST = 4 << 30
"""No budget asks for more memory than this."""

_MIB = 1 << 20

_BLOCKS = 6
"""Blocks, all alike, through which ways are compared."""


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", default="64,256,1024")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--cost", type=int, default=1024, help="tokens of the comparison of ways; 0 for none")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="budgets (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep rows that were measured under the same plan")
    parser.add_argument("--one", type=float, metavar="SHARE", help="print one row of the first number of tokens")
    parser.add_argument("--products", type=Path, help="file of what the sweeps of --one found")
    parser.add_argument("--out", type=Path, default=Path("bench/results/schedule.json"))
    arguments = parser.parse_args()
    loaded = dl.load_model(arguments.model)
    if arguments.one is not None:
        least = arguments.products.with_name(f"{min(SHARES)}.pt")
        choices = torch.load(least)[1] if least.exists() and least != arguments.products else None
        ids = text_ids(loaded, int(arguments.tokens))
        row, products = peaks(loaded, ids, arguments.one, arguments.width, choices)
        torch.save((products, roads.choices()), arguments.products)
        print(json.dumps(row))
        return
    figures: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    mine = figures.setdefault(arguments.model, {})
    for n in [int(n) for n in arguments.tokens.split(",") if n]:
        found = {row["share"]: row for row in mine.get("peaks", {}).get(str(n), []) if "share" in row}
        for share in map(float, arguments.shares.split(",")):
            row = found.get(share) if arguments.resume else None
            if row is None or not renewed(row, loaded, n, arguments.width):
                found[share] = row = _alone(arguments.model, n, share, arguments.width)
            print(f"{n} tokens: {LINE.format(**row)}", flush=True)
            mine.setdefault("peaks", {})[str(n)] = [found[share] for share in sorted(found)]
            arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.cost:
        mine["cost"] = cost(loaded, text_ids(loaded, arguments.cost), arguments.width)
        print(json.dumps(mine["cost"], indent=1))
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def _alone(model: str, tokens: int, share: float, width: int) -> dict[str, Any]:
    """Return a row measured in a process of its own: what is allocated only the first time is counted too."""
    products = Path(tempfile.gettempdir()) / "detjac-schedule" / f"{model}-{tokens}-{width}"
    products.mkdir(parents=True, exist_ok=True)
    file, least = products / f"{share}.pt", products / f"{min(SHARES)}.pt"
    options = ["--model", model, "--tokens", str(tokens), "--width", str(width), "--one", str(share)]
    command = [sys.executable, "-m", "bench.schedule", *options, "--products", str(file)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row: dict[str, Any] = json.loads(out.splitlines()[-1])
    if file != least and least.exists():
        pairs = list(zip(torch.load(file)[0], torch.load(least)[0], strict=True))
        row["equal bits"] = all(torch.equal(a, b) for a, b in pairs)
        row["difference"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        file.unlink()
    return row


def budgeted(loaded: Any, tokens: int, share: float) -> Plan:
    """Return today's plan for a share of the memory."""
    from detjac_lanczos.frozen.families import family_of

    shape = family_of(loaded.model).shape(loaded.model, "gate")
    whole = make_plan(shape, [tokens], None).resident
    least = shape.streams([tokens]) + shape.rest([tokens])
    return make_plan(shape, [tokens], int(least + share * (min(whole, max(_MOST, least)) - least)))


def renewed(row: dict[str, Any], loaded: Any, tokens: int, width: int) -> bool:
    """Put today's prediction beside what was measured; False where today's plan is another one."""
    plan = budgeted(loaded, tokens, row["share"])
    record = plan.record
    if row["width"] != width or any(row["plan"][key] != record[key] for key in ("memory", "mixing", "gates")):
        return False
    row |= {"predicted_MiB": plan.peak(width) / _MIB, "plan": record}
    row["ratio"] = row["predicted_MiB"] / row["measured_MiB"]
    return True


LINE = "budget {budget_MiB:.0f} MiB, predicted peak {predicted_MiB:.1f}, measured {measured_MiB:.1f} ({ratio:.3f})"


def text_ids(loaded: Any, n: int) -> list[int]:
    """Return the first n tokens of this project's own texts."""
    top = Path(__file__).parents[1]
    text = "\n".join(path.read_text() for path in (top / "README.md", top / "LICENSE", *sorted(top.glob("docs/*.md"))))
    ids: list[int] = loaded.tokenizer(text)["input_ids"]
    if len(ids) < n:
        raise SystemExit(f"the texts have {len(ids)} tokens, not {n}")
    return ids[:n]


def peaks(
    loaded: Any, ids: list[int], share: float, width: int, choices: dict[str, str] | None
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Predict and measure the peak of a capture and of one sweep each way; return what the sweeps found, too.

    With the GEMMs that another process had chosen they are made once more, so that bits can be compared.
    """
    budget = budgeted(loaded, len(ids), share).memory
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    network, captured, _ = with_peak(lambda: dl.detach(loaded, input_ids=ids, memory=budget))
    seconds = [time.perf_counter() - began]
    J = network.jacobian("joint")
    X, Y = (torch.randn(m, width, generator=generator) for m in reversed(J.shape))
    found, products = [], []
    for product, block in ((J.matmat, X), (J.rmatmat, Y)):
        began = time.perf_counter()
        result, peak, _ = with_peak(lambda: product(block))  # noqa: B023
        found.append(peak)
        products.append(result)
        seconds.append(time.perf_counter() - began)
    if choices is not None:
        roads.replay(choices)
        products = [J.matmat(X), J.rmatmat(Y)]
    plan = network.plan
    measured = max(captured, plan.resident + max(found))
    row = {
        "share": share,
        "width": width,
        "budget_MiB": plan.memory / _MIB,
        "resident_MiB": plan.resident / _MIB,
        "offloaded_MiB": plan.offloaded / _MIB,
        "predicted_MiB": plan.peak(width) / _MIB,
        "measured_MiB": measured / _MIB,
        "capture_MiB": captured / _MIB,
        "forward_MiB": found[0] / _MIB,
        "transposed_MiB": found[1] / _MIB,
        "ratio": plan.peak(width) / measured,
        "plan": plan.record,
        "seconds": seconds,
    }
    return row, products


def cost(loaded: Any, ids: list[int], width: int) -> dict[str, Any]:
    """Return CPU seconds of a product both ways through the last blocks, kept and with each kind made again."""
    ways = {
        "keep": ("keep", "keep"),
        "rebuild mixing": ("rebuild", "keep"),
        "rebuild gates": ("keep", "rebuild"),
        "rebuild": ("rebuild", "rebuild"),
    }
    networks = {name: as_planned(loaded, ids, *way) for name, way in ways.items()}
    generator = torch.Generator().manual_seed(0)
    source = dl.layer(max(0, networks["keep"].blocks - _BLOCKS))
    J = networks["keep"].jacobian("joint", source=source)
    X, Y = (torch.randn(m, width, generator=generator) for m in reversed(J.shape))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for turn in range(4):  # the first one meets the shapes
        for name, network in networks.items():
            J = network.jacobian("joint", source=source)
            began = time.process_time()
            results[name] = J.matmat(X), J.rmatmat(Y)
            if turn:
                seconds[name].append(time.process_time() - began)
    least = {name: min(found) for name, found in seconds.items()}
    first = results["keep"]
    return {
        "tokens": len(ids),
        "width": width,
        "blocks": min(_BLOCKS, networks["keep"].blocks),
        "cpu_seconds": least,
        "ratio": {name: value / least["keep"] for name, value in least.items()},
        "difference": {
            name: max(float((a - b).norm() / b.norm()) for a, b in zip(found, first, strict=True))
            for name, found in results.items()
        },
    }


def as_planned(loaded: Any, ids: list[int], mixing: Any, gates: Any) -> Any:
    """Return a network whose blocks all go one way for each kind of coefficient."""

    def plan(*arguments: Any) -> Plan:
        made = make_plan(*arguments)
        return replace(made, mixing=(mixing,) * len(made.mixing), gates=(gates,) * len(made.gates))

    with patch("detjac_lanczos.operators.detach.make_plan", plan):
        return dl.detach(loaded, input_ids=ids, memory=_MOST)


if __name__ == "__main__":
    main()

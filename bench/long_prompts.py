"""A prompt of thousands of tokens under a budget of memory: joint operator and chosen tokens, checked against the pass.

``python -m bench.long_prompts`` runs SmolLM2 and Gemma 3 270m (whose windows of 512 cut) at 4,096 tokens under 2 GiB;
with ``--compare`` it holds products under budgets against those of a network without one (SmolLM2 at 4,096 tokens then
takes 18 GB).
Both add what they find to ``bench/results/schedule.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import detjac_lanczos as dl
from bench.memory import peak_of_process
from bench.schedule import as_planned, text_ids


def main() -> None:
    """Run one model after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="smollm2,gemma3-270m")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--out", type=Path, default=Path("bench/results/schedule.json"))
    parser.add_argument("--compare", action="store_true", help="with a network that keeps everything")
    arguments = parser.parse_args()
    kind, run = ("unbounded", compare) if arguments.compare else ("long", long_prompt)
    for name in arguments.models.split(","):
        _write(arguments.out, name, kind, str(arguments.tokens), run(name, arguments.tokens, arguments.memory))


def _write(path: Path, model: str, kind: str, tokens: str, row: Any) -> None:
    figures = json.loads(path.read_text()) if path.exists() else {}
    figures.setdefault(model, {}).setdefault(kind, {})[tokens] = row
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print(model, json.dumps(row, indent=1), flush=True)


def compare(name: str, tokens: int, memory: str) -> list[dict[str, Any]]:
    """Return the largest difference of products, both ways, from those of a network that keeps everything."""
    loaded = dl.load_model(name)
    ids = text_ids(loaded, tokens)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens * loaded.model.config.hidden_size, 1, generator=generator)
    u = torch.randn(loaded.model.config.hidden_size, 1, generator=generator)
    products: list[list[torch.Tensor]] = []
    rows = []
    networks: list[tuple[str, Callable[[], Any]]] = [
        ("no budget", lambda: dl.detach(loaded, input_ids=ids)),
        ("all in files", lambda: as_planned(loaded, ids, "offload", "offload")),
        (memory, lambda: dl.detach(loaded, input_ids=ids, memory=memory)),
    ]
    for budget, make in networks:
        network = make()
        J = network.jacobian("joint")
        products.append([J.matmat(x), J.rmatmat(u)])
        rows.append(
            {
                "budget": budget,
                "plan": network.plan.record,
                "equal bits": all(map(torch.equal, products[-1], products[0])),
                "difference": max(
                    float((a - b).norm() / b.norm()) for a, b in zip(products[-1], products[0], strict=True)
                ),
            }
        )
        print({key: rows[-1][key] for key in ("budget", "equal bits", "difference")}, flush=True)
        del J, network
    return rows


def long_prompt(name: str, tokens: int, memory: str) -> dict[str, Any]:
    """Capture a long prompt and hold its Jacobians against the forward pass and against one another."""
    loaded = dl.load_model(name)
    ids = text_ids(loaded, tokens)
    dl.detach(loaded, input_ids=ids[:8])
    before = peak_of_process()
    clock = [time.process_time()]
    network = dl.detach(loaded, input_ids=ids, memory=memory)
    print(network.plan, flush=True)
    clock.append(time.process_time())
    J = network.jacobian("joint")
    y = J.matmat(J.x[:, None])[:, 0] + J.offset
    clock.append(time.process_time())
    u = torch.randn(J.shape[0], 1, generator=torch.Generator().manual_seed(0))
    back = J.rmatmat(u)
    clock.append(time.process_time())
    inner = float(y.double() @ u[:, 0].double() - J.offset.double() @ u[:, 0].double())
    chosen = [tokens // 2, tokens - 600, tokens - 1]
    batch = network.jacobians(chosen)
    separate = batch.rmatmat([(i, u) for i in range(len(chosen))])
    d = J.shape[1] // tokens
    apart = [
        float((part[:, 0] - back[i * d : (i + 1) * d, 0]).norm() / part.norm())
        for i, part in zip(chosen, separate, strict=True)
    ]
    return {
        "memory": memory,
        "plan": network.plan.record,
        "reconstruction": float((y - J.y).norm() / J.y.norm()),
        "adjointness": abs(inner - float(back[:, 0].double() @ J.x.double())) / float(y.norm() * u.norm()),
        "chosen tokens against joint": dict(zip(map(str, chosen), apart, strict=True)),
        "cpu seconds": dict(
            zip(("capture", "forward", "transposed"), (b - a for a, b in pairwise(clock)), strict=True)
        ),
        "growth of the process MiB": (peak_of_process() - before) / 2**20,
    }


if __name__ == "__main__":
    main()

"""What a survey of a long prompt gets right: σ_1 of every token against its Jacobian written out, and what is flagged.

``python -m bench.survey`` runs SmolLM2 on texts of 256 and 1,024 tokens and writes ``bench/results/survey.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import detjac_lanczos as dl
from bench.schedule import text_ids
from detjac_lanczos.solvers import flagged, polish

K = 8
ALLOWED = 0.05
"""Relative error of σ_1 above which a token has to be flagged."""
POLISHED = 4


def main() -> None:
    """Run one text after the other, and write each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="256,1024")
    parser.add_argument("--out", type=Path, default=Path("bench/results/survey.json"))
    arguments = parser.parse_args()
    loaded = dl.load_model("smollm2")
    for tokens in map(int, arguments.tokens.split(",")):
        row = survey(loaded, tokens)
        print(tokens, json.dumps(row, indent=1), flush=True)
        figures = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        figures[str(tokens)] = row
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def survey(loaded: dl.LoadedModel, tokens: int) -> dict[str, Any]:
    """Survey the first ``tokens`` of a text and hold σ_1 of each token against a dense SVD."""
    batch = dl.detach(loaded, input_ids=text_ids(loaded, tokens)).jacobians()
    exact = _largest_values(batch)
    results = dl.svd_batch(batch, K, method="shared_basis")
    bounds = torch.tensor([float(result.S[0]) for result in results], dtype=torch.float64)
    estimates = torch.stack([result.missed.values[0] for result in results])
    errors, lacks = (estimates / exact - 1).abs(), 1 - bounds / exact
    flags = flagged(results)
    above = set((torch.maximum(errors, lacks) > ALLOWED).nonzero()[:, 0].tolist())
    worst = sorted(flags, key=lambda index: -float(lacks[index]))[:POLISHED]
    polished = polish(batch, results, worst)
    d = batch.shapes[0][0]
    return {
        "share of dense rows": sum(result.work.row_sweeps for result in results) / (d * batch.shared_cost()),
        "estimate": _spread(errors),
        "lower bound": _spread(lacks),
        "either above 5 %": len(above),
        "above 5 % and not flagged": len(above - set(flags)),
        "flagged": len(flags),
        "worst flagged, polished": [polished[index].certificate.line for index in worst],
        "their errors of σ_1": [abs(1 - float(polished[index].S[0]) / float(exact[index])) for index in worst],
    }


def _spread(errors: torch.Tensor) -> dict[str, float]:
    return {
        "median": float(errors.median()),
        "90th percentile": float(errors.quantile(0.9)),
        "worst": float(errors.max()),
    }


def _largest_values(batch: Any) -> torch.Tensor:
    """Return σ_1 of every operator from its dense matrix: (operators,) float64."""
    d_out = batch.shapes[0][0]
    parts = [batch.rmatmat_shared(part) for part in torch.eye(d_out, dtype=batch.dtype).split(64, dim=1)]
    columns = [torch.cat([part[i] for part in parts], dim=1) for i in range(len(batch))]
    return torch.stack([torch.linalg.svdvals(column)[0].double() for column in columns])


if __name__ == "__main__":
    main()

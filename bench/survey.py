"""What a survey of a long prompt gets right: σ_1 of every token against its Jacobian written out, and what is flagged.

``python -m bench.survey`` runs SmolLM2 on texts of 256 and 1,024 tokens, writes ``bench/results/survey.json`` and, from
it, the table in ``docs/solvers.md``. The Jacobians are written out first, to files from which a run that was cut off
goes on; their products stand in for the sweeps of survey and polish, whose row-sweeps are counted as ever.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import detjac_lanczos as dl
from bench.schedule import text_ids
from bench.stored_jacobians import StoredJacobians
from bench.survey_page import write_table
from detjac_lanczos.solvers import SVDResult, flagged, polish, worst

K = 8
ALLOWED = 0.05
"""Relative error of σ_1 above which a token has to be flagged."""
PAGE = Path("docs/solvers.md")


def main() -> None:
    """Run one text after the other, and write each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="256,1024")
    parser.add_argument("--polish", type=int, help="polish so many of the flagged, the worst first (default: all)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/survey.json"))
    kept = Path(tempfile.gettempdir()) / "detjac-survey"
    parser.add_argument("--folder", type=Path, default=kept, help="where Jacobians are kept (default: %(default)s)")
    arguments = parser.parse_args()
    loaded = dl.load_model("smollm2")
    figures = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for tokens in map(int, arguments.tokens.split(",")):
        figures[str(tokens)] = survey(loaded, tokens, arguments.polish, arguments.folder)
        print(tokens, json.dumps(figures[str(tokens)], indent=1), flush=True)
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    write_table(figures, PAGE)
    print(f"written: {arguments.out}, {PAGE}")


def survey(loaded: dl.LoadedModel, tokens: int, most: int | None, folder: Path) -> dict[str, Any]:
    """Survey the first ``tokens`` of a text and hold σ_1 of each token against a dense SVD; polish what was flagged."""
    ids = text_ids(loaded, tokens)
    batch = StoredJacobians(dl.detach(loaded, input_ids=ids).jacobians(), ids, folder)
    exact = batch.largest_values()
    results = dl.svd_batch(batch, K, method="shared_basis")
    dense_rows = batch.shapes[0][0] * batch.shared_cost()
    chosen = [index for index in worst(results, len(results)) if results[index].missed.flagged][:most]
    polished = polish(batch, results, chosen)
    return {
        "share of dense rows": sum(result.work.row_sweeps for result in results) / dense_rows,
        **errors(exact, results),
        "polished": polish_figures(exact, [polished[index] for index in chosen], chosen, dense_rows),
    }


def errors(exact: torch.Tensor, results: Sequence[SVDResult]) -> dict[str, Any]:
    """Return relative errors of σ_1 (estimates, lower bounds), and how many were above 5 % and not flagged."""
    low, high = torch.tensor([result.missed.sigma_1 for result in results], dtype=torch.float64).T
    misses = (torch.stack([result.missed.values[0] for result in results]) / exact - 1).abs()
    above = set((misses > ALLOWED).nonzero()[:, 0].tolist())
    flags = flagged(results)
    return {
        "probes": results[0].missed.probes,
        "basis": len(results[0].missed.basis),
        "estimate": _spread(misses),
        "lower bound": _spread(1 - low / exact),
        "above 5 %": len(above),
        "above 5 % and not flagged": len(above - set(flags)),
        "flagged": len(flags),
        "outside the interval": int(((exact > high) | (low > exact * (1 + 1e-5))).sum()),
        "median of the upper bound": float((high / exact - 1).median()),
    }


def polish_figures(
    exact: torch.Tensor, polished: Sequence[SVDResult], chosen: Sequence[int], dense_rows: float
) -> dict[str, Any]:
    """Return what became of the tokens that were polished."""
    claims = Counter(result.certificate.line.split(",")[0] for result in polished if result.certificate)
    return {
        "tokens": len(polished),
        "claims": dict(claims),
        "methods": sorted({result.method for result in polished}),
        "largest residual": max((float(result.relative.max()) for result in polished), default=0.0),
        "share of dense rows": sum(result.work.row_sweeps for result in polished) / dense_rows,
        "largest error of σ_1": max(
            (abs(1 - float(r.S[0]) / float(exact[i])) for i, r in zip(chosen, polished, strict=True)), default=0.0
        ),
    }


def _spread(values: torch.Tensor) -> dict[str, float]:
    return {
        "median": float(values.median()),
        "90th percentile": float(values.quantile(0.9)),
        "worst": float(values.max()),
    }


if __name__ == "__main__":
    main()

"""How often claims are wrong: every spectrum, k, tolerance and width over many seeds, counted.

``python -m bench.coverage`` (or ``make coverage``) takes hours, writes ``bench/results/coverage.json`` and
``docs/coverage.md`` after every seed of a spectrum, and goes on from there when it is started again. Where the solver
has changed, ``--spectra NAMES --out NEW`` counts some of them anew, and ``--spectra NAMES --merge NEW`` takes these
rows over.

Every case is solved with probes for completeness. Where they found nothing, the same solve without them ends with the
same triplets (the tests hold it to that, bit for bit); where they did, it is made and judged as well.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cases import SPECTRA, Case, Problem, cases, make_problem
from bench.coverage_page import page
from bench.real_jacobians import MODELS, real_problems
from detjac_lanczos.runs.folder import write_whole
from detjac_lanczos.solvers import Status, SVDResult, svd

RECORD = Path("bench/results/coverage.json")
PAGE = Path("docs/coverage.md")

DELTA = 0.05
"""Of claims of completeness, here alone: so large that failures can be counted."""

SEEDS = 300


def count(case: Case, problem: Problem, seed: int) -> Counter[str]:
    """Solve a problem with probes, and without them where they made a difference; judge every claim."""
    probed = solve(case, problem, seed)
    total = judge(case, problem, probed)
    plain = solve(case, problem, seed, probes=False) if probes_told_more(probed) else None
    if plain is not None:
        total += judge(case, problem, plain)
    total["missed values"] = int(missed(case, problem, probed if plain is None else plain))
    return total


def probes_told_more(result: SVDResult) -> bool:
    """Whether the search went on from what a probe had found."""
    claim = None if result.certificate is None else result.certificate.completeness
    return claim is not None and claim.number > 0


def solve(case: Case, problem: Problem, seed: int, *, probes: bool = True) -> SVDResult:
    """Solve a problem as the case says."""
    return svd(
        problem.operator,
        case.k,
        tol=case.tol,
        method="lanczos",
        block=case.width,
        start=problem.start,
        seed=seed,
        certify="complete" if probes else "triplets",
        delta=DELTA,
    )


def judge(case: Case, problem: Problem, result: SVDResult) -> Counter[str]:
    """Hold every claim of a result against the exact singular values; return what to count.

    Ritz values lie below the exact ones as far as the vectors are orthonormal: σ_j(Uᵀ A V) ≤ ‖U‖ ‖V‖ σ_j(A), where
    ‖U‖² ≤ 1 + ‖UᵀU - I‖ was measured.
    """
    certificate, exact, tol = result.certificate, problem.exact, case.tol
    count = Counter({"solves": 1, f"status {result.status.value}": 1})
    values = result.S.double().numpy()
    floor = result.floor
    possible = len(exact) >= case.k and tol * exact[case.k - 1] > floor
    right = result.converged or (not possible and result.status is Status.NOISE_FLOOR)
    if result.status is Status.BREAKDOWN_EXACT:
        right = bool((exact[case.k :] <= floor).all())
    count["wrong status"] = int(not right)
    if certificate is None:
        return count
    claimed = np.flatnonzero(result.relative.amax(dim=1).numpy() <= tol)
    residuals, allowed = _true_residuals(problem, result)[claimed], tol * values[claimed] + floor
    wrong = not _distinct_within(values[claimed], exact, certificate.radius + floor)
    stretch = math.prod(1 + defect for defect in certificate.orthonormality) ** 0.5
    wrong |= bool((residuals > allowed).any() or (values > stretch * exact[: len(values)] + floor).any())
    count["claims"] = 1
    count["false TRIPLETS"] = int(wrong)
    claim = certificate.completeness
    if claim is not None:
        upper = np.array(claim.upper)
        exact = np.concatenate([exact, np.zeros(max(0, len(upper) - len(exact)))])
        count["BOUND"] = 1
        count["false BOUND"] = int((exact[: len(upper)] > upper).any())
        if claim.complete:
            count["COMPLETE"] = 1
            count["false COMPLETE"] = int(missed(case, problem, result))
    return count


def missed(case: Case, problem: Problem, result: SVDResult) -> bool:
    """Whether a solve that says it has converged lacks one of the leading values."""
    found = (1 + case.tol) * result.S.double().numpy() + result.floor
    return result.converged and bool((problem.exact[: case.k] > found).any())


def _true_residuals(problem: Problem, result: SVDResult) -> np.ndarray:
    """Return max(‖A v - s u‖, ‖Aᵀ u - s v‖) of each triplet, by float64 products of an operator of size 1."""
    unit = float(problem.exact[0]) or 1.0
    U, S, V = (block.double() for block in (result.U, result.S / unit, result.V))
    right = problem.exact_operator.matmat(V / unit) - U * S
    left = problem.exact_operator.rmatmat(U / unit) - V * S
    return np.asarray(torch.maximum(right.norm(dim=0), left.norm(dim=0)).numpy() * unit)


def _distinct_within(values: np.ndarray, exact: np.ndarray, radius: float) -> bool:
    """Whether every value has an exact one of its own within the radius; both descend: the first free one is best."""
    place = 0
    for value in values:
        while place < len(exact) and exact[place] > value + radius:
            place += 1
        if place == len(exact) or exact[place] < value - radius:
            return False
        place += 1
    return True


def main(argv: list[str] | None = None) -> int:
    """Count on, seed by seed; return 1 if a claim failed more often than it may."""
    parser = argparse.ArgumentParser(prog="python -m bench.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="count seeds 0 to this less one")
    parser.add_argument("--spectra", default=",".join((*SPECTRA, *MODELS)), help="count these (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many (default: never)")
    parser.add_argument("--merge", type=Path, help="count nothing: take the rows of these spectra from another record")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    record, names = _read(arguments.out), tuple(arguments.spectra.split(","))
    if arguments.merge is not None:
        return _keep(merged(record, _read(arguments.merge), names), arguments.out, arguments.page)
    record |= {"seeds wanted": arguments.seeds, "delta": DELTA, "torch": torch.__version__}
    real = real_problems() if set(names) & set(MODELS) else {}
    until = time.monotonic() + 60 * arguments.minutes
    for seed in range(arguments.seeds):
        for name in names:
            if seed in record["seeds"].get(name, []) or (name in MODELS and name not in real):
                continue
            counts: dict[str, Counter[str]] = {}
            for case in cases((name,)):
                if time.monotonic() > until:
                    print(f"stopped at seed {seed} of {name}; start it again to go on")
                    return 0
                problem = real[name](case, seed) if name in real else make_problem(case, seed)
                counts[case.name] = count(case, problem, seed)
            for key, found in counts.items():
                total = Counter(record["cases"].get(key, {}))
                total.update(found)
                record["cases"][key] = dict(total)
            record["seeds"][name] = sorted([*record["seeds"].get(name, []), seed])
            sound = not _keep(record, arguments.out, arguments.page)
            print(f"{name}, seed {seed} of {arguments.seeds}: {'sound' if sound else 'A CLAIM FAILED'}", flush=True)
    print(f"written: {arguments.out}, {arguments.page}")
    return _keep(record, arguments.out, arguments.page)


def merged(record: dict[str, Any], other: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a record with the rows of these spectra, as far as the other has them, in the place of its own."""
    taken = set(names) & set(other["seeds"])

    def of_taken(key: str) -> bool:
        return key.split(" | ")[0] in taken

    fresh = {key: found for key, found in other["cases"].items() if of_taken(key)}
    left = {key: found for key, found in record["cases"].items() if not of_taken(key) or key in fresh}
    seeds = record["seeds"] | {name: other["seeds"][name] for name in taken}
    return other | record | {"seeds": seeds, "cases": left | fresh}


def _keep(record: dict[str, Any], out: Path, where: Path) -> int:
    """Write the record and its page; return 1 if a claim failed more often than it may."""
    write_whole(out, json.dumps(record, separators=(",", ":")) + "\n")
    text, sound = page(record)
    write_whole(where, text)
    return 0 if sound else 1


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"seeds": {}, "cases": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    sys.exit(main())

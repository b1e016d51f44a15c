"""The Lanczos method: block Golub-Kahan in lockstep, and what it found."""

from dataclasses import replace

import torch

from detjac_lanczos.solvers.claim_completeness import claim_completeness
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.finish import Found, Method, finish
from detjac_lanczos.solvers.lockstep import Lockstep
from detjac_lanczos.solvers.options import Options
from detjac_lanczos.solvers.result import Status, SVDResult
from detjac_lanczos.solvers.search import Search


def solve_lanczos(batch: CountingBatch, options: Options, method: Method) -> list[SVDResult]:
    """Find the leading triplets of every operator by block Golub-Kahan with shrinking blocks, in lockstep."""
    return conclude(Lockstep(batch, options), method)


def conclude(lockstep: Lockstep, method: Method) -> list[SVDResult]:
    """Run a lockstep (begun or not) to its end and return the results."""
    results = []
    lockstep.run()
    if lockstep.width != lockstep.options.width:
        widths = {"block": lockstep.width, "first_block": lockstep.options.width}
        method = replace(method, why=method.why + lockstep.why, choices=method.choices | widths)
    claims = [None] * len(lockstep.searches) if lockstep.options.delta is None else claim_completeness(lockstep)
    for index, completed in enumerate(claims):
        search = lockstep.searches.pop(0)
        assert search.status is not None
        search.conclude()
        found, status, probed, energy = _found(search), search.status, search.probed, search.goal.energy
        widened = tuple(search.widening.made)
        del search  # its bases make room for the result
        results.append(
            finish(
                lockstep.batch,
                index,
                found,
                status,
                method,
                lockstep.options,
                seconds=lockstep.ended[index],
                completed=completed,
                probed=probed,
                energy=energy,
                widened=widened,
            )
        )
    return results


def _found(search: Search) -> Found | None:
    if search.triplets is None or search.status in (Status.NOT_ADJOINT, Status.NOT_DETERMINISTIC):
        return None
    found = Found.of(search.triplets.head(search.k), search.judge.scale, float(search.triplets.values[0]))
    return replace(found, mismatch=torch.full_like(found.values, search.unseen)) if search.unseen else found

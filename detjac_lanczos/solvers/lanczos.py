"""The Lanczos method: block Golub-Kahan in lockstep, what it found, and the claims that this is all."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from detjac_lanczos.solvers.attempt import Attempt, CompletenessClaim
from detjac_lanczos.solvers.counting import CountingBatch
from detjac_lanczos.solvers.finish import Found, Method, finish
from detjac_lanczos.solvers.lockstep import Lockstep
from detjac_lanczos.solvers.operator import Direction
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
    claims = [None] * len(lockstep.searches) if lockstep.options.delta is None else _claims(lockstep)
    for index, completed in enumerate(claims):
        search = lockstep.searches.pop(0)
        assert search.status is not None
        search.restate_energy()
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


def _claims(lockstep: Lockstep) -> list[CompletenessClaim | None]:
    """Probe every operator whose search has ended well, until each claim is made or products run out.

    A probe that finds a value above s_k (a missed one), or a further copy of s_k, gives its vectors with their products
    to the search, which goes on; the claim is then made again with fresh vectors and what is left of δ.

    Returns
    -------
    list of CompletenessClaim or None
        None where there was nothing to claim, or no product left to claim it with.
    """
    claims: list[CompletenessClaim | None] = [None] * len(lockstep.searches)
    attempts = {index: Attempt(lockstep.searches[index]) for index in _ready(lockstep, range(len(claims)))}
    while attempts:
        _probe(lockstep, attempts)
        for index, attempt in attempts.items():
            if attempt.found:
                attempt.feed()
                if attempt.search.status is None:
                    attempt.search.prepare(lockstep.direction)
            elif _ended_well(attempt.search.status):
                claims[index] = attempt.completed()
        again = {index: attempt for index, attempt in attempts.items() if attempt.found}
        lockstep.run()
        for attempt in again.values():
            attempt.search.forgo()
        attempts = {index: again[index].next() for index in _ready(lockstep, again)}
    return claims


def _ready(lockstep: Lockstep, indices: Iterable[int]) -> list[int]:
    return [index for index in indices if _ended_well(lockstep.searches[index].status)]


def _ended_well(status: Status | None) -> bool:
    return status is not None and status.ended_well


def _probe(lockstep: Lockstep, attempts: Mapping[int, Attempt]) -> None:
    """Send the probes of all operators through passes that they share, to and fro, until each has ended."""
    direction, batch = Direction.FORWARD, lockstep.batch
    while any(attempt.row is not None for attempt in attempts.values()):
        turn = [
            (index, attempt.row)
            for index, attempt in attempts.items()
            if attempt.row is not None and attempt.probe.direction is direction
        ]
        if turn:
            for (index, _), product in zip(turn, batch.apply(direction, turn), strict=True):
                if index in batch.nonfinite:
                    attempts[index].search.status, attempts[index].ended = Status.NOT_FINITE, True
                else:
                    attempts[index].absorb(product)
                lockstep.close(index)
            unclaimed = sum(attempt.row is not None or attempt.found for attempt in attempts.values())
            lockstep.claimed = len(lockstep.searches) - unclaimed
            lockstep.report()
        direction = direction.other

"""What a record says of itself: parts that follow from the network, from the options or from each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import DetachedNetwork, JacobianBatch
from detjac_lanczos.reading.record_values import SUCCESSFUL
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.record import definition_of
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.search_options import SHARED_BASIS, check_search, search_from
from detjac_lanczos.runs.token_result import TokenResult, completeness_of
from detjac_lanczos.solvers.certificate import Certificate
from detjac_lanczos.solvers.options import METHODS
from detjac_lanczos.solvers.result import Status
from detjac_lanczos.solvers.rounding import epsilon_at, noise_floor, tells_zeros

WORDED = ("family", "frozen", "input", "tail", "target_definition", "weights")
"""Parts of a definition that are sentences or names. What they say is held by parts that are compared (source, target,
position, freeze, route, dtype, the fingerprint of the weights) and by what is measured: x, y and the products of the
operator. The words themselves may be others in another version.
"""

_STABLE_RANK = ("stable_rank", "stable_rank_interval", "stable_rank_confidence")


def coherence_claims(
    run: Run, network: DetachedNetwork, batch: JacobianBatch, places: Mapping[str, Any]
) -> Iterator[Claim]:
    """Compare what a run says it is with the network made again, and its results with what was asked for.

    Each claim counts the parts that contradict the rest, and names them. ``batch``: the operators of the run's tokens,
    ``places``: their source, target and position.
    """
    every = network.jacobians(**places).operators
    positions = list({operator.prompt: operator.position for operator in every}.values())
    yield _claim("definition", _of_definition(run.record, network, batch, positions))
    tokens = [[operator.prompt, operator.token] for operator in every]
    yield _claim("options", _of_options(run, str(batch.operators[0].target), tokens))
    for token in run.tokens:
        yield _claim(token.name, _of_token(run, token, epsilon_at(batch.dtype, _first(token), max(batch.shapes[0]))))


def wording_notes(record: Mapping[str, Any], batch: JacobianBatch) -> Iterator[str]:
    """Yield a line for each part of the definition that reads otherwise today."""
    written, today = record["definition"], batch.operators[0].definition
    for name in WORDED:
        if name in today and name in written and written[name] != today[name]:
            yield (
                f"definition.{name} reads {written[name]!r} in the record and {today[name]!r} today: the words are not "
                "compared, what they stand for is measured"
            )


def _claim(where: str, wrong: Iterable[tuple[str, bool]]) -> Claim:
    found = [name for name, contradicts in wrong if contradicts]
    named = f": {', '.join(found)}" if found else ""
    return Claim(f"contradictions in the {where}{named}", 0.0, float(len(found)), 0.0)


def _of_definition(
    record: Mapping[str, Any], network: DetachedNetwork, batch: JacobianBatch, positions: Sequence[int]
) -> Iterator[tuple[str, bool]]:
    written, true = record["definition"], definition_of(batch, positions)
    for name in sorted(written.keys() | true.keys()):
        reworded = name in WORDED and isinstance(written.get(name), str) and name in true
        yield f"definition.{name}", written.get(name) != true.get(name) and not reworded
    for name in ("freeze", "route", "dtype"):
        yield name, record[name] != true[name]
    yield "quantization", record["quantization"] is not None and network.loaded.packing is None


def _of_options(run: Run, target: str, every: list[list[int | None]]) -> Iterator[tuple[str, bool]]:
    options, method = run.record["options"], run.record["work"]["method"]
    chosen = [[token.prompt, token.index] for token in run.tokens]
    yield "options.tokens", chosen != (every if options["tokens"] is None else options["tokens"])
    yield "options.target", options["target"] != target
    yield "options.method", options["method"] not in ("auto", method)
    yield "work.method", method not in METHODS
    yield from _of_search(options)
    yield "options.polish", not _polished_as_asked(run.tokens, options["polish"])
    yield "prompts", options["chat"] and None in run.prompts


def _of_search(options: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Ask the solver whether it would take these options."""
    try:
        check_search(options["k"], options["polish"], search_from(options))
        yield "options.k", all(options[name] is None for name in ("k", "threshold", "energy"))
    except InputError as error:
        yield f"options ({error})", True


def _polished_as_asked(tokens: Sequence[TokenResult], wanted: str | int | None) -> bool:
    surveyed = [token for token in tokens if token.survey is not None]
    polished = [token for token in surveyed if not token.estimated]
    if isinstance(wanted, str):
        return all((token in polished) == token.survey["flagged"] for token in surveyed if token.survey is not None)
    return len(polished) == min(wanted or 0, len(surveyed))


def _of_token(run: Run, token: TokenResult, eps: float) -> Iterator[tuple[str, bool]]:
    options, record = run.record["options"], token.record
    unknown, surveyed = None in record["singular_values"], run.record["work"]["method"] == SHARED_BASIS
    done = token.status in SUCCESSFUL
    largest = _first(token) * (1 + 4 * eps)
    hidden = token.status == Status.BREAKDOWN_EXACT.value and not tells_zeros(record["floor"], options["tol"], largest)
    yield "status", (unknown and token.settled) or (token.estimated and not surveyed) or hidden
    yield "singular_values", token.settled and options["k"] not in (None, len(token.S))
    certified = options["certify"] is not None and not unknown and not token.estimated
    yield "certificate", (token.certificate is not None) != certified
    if token.certificate is not None:
        yield from _of_certificate(token, token.certificate, options, eps)
    yield "survey", not unknown and (token.survey is not None) != surveyed
    shared, wanted = record["energy"] is not None, options["energy"] is not None
    yield "energy", (shared and not wanted) or (wanted and done and not shared)
    yield "floor", not unknown and not _is_floor(record["floor"], token, surveyed, eps)
    nothing_read = unknown or not len(token.S)
    yield "stable_rank", nothing_read and any(record[name] is not None for name in _STABLE_RANK)
    told = record["contribution"] is not None
    yield "contribution", told and nothing_read and (unknown or not Status(token.status).ended_well)
    spent = record["work"]["products_forward"] + record["work"]["products_transposed"]
    yield "work", options["max_products"] is not None and not surveyed and spent > options["max_products"]
    yield "work.probe_products", options["certify"] != "complete" and bool(record["work"]["probe_products"])


def _of_certificate(
    token: TokenResult, certificate: Certificate, options: Mapping[str, Any], eps: float
) -> Iterator[tuple[str, bool]]:
    written, claim = token.record["certificate"], certificate.completeness
    asked = options["certify"] == "complete"
    # Only a budget that ran out, or a search that went wrong, leaves a claim that was asked for unmade.
    due = asked and options["max_products"] is None and Status(token.status).ended_well
    yield "certificate.completeness", (claim is None and due) or (claim is not None and not asked)
    yield "certificate.radius", written.get("radius") != certificate.radius
    yield "certificate.floor", certificate.floor != token.record["floor"]
    yield "certificate.tol", certificate.tol != options["tol"]
    yield "certificate.k", certificate.k != len(token.S)
    first = float(token.S.max()) if len(token.S) else 0.0
    yield "certificate.sigma_1", abs(certificate.sigma_1 - first) > 4 * eps * first
    yield "certificate.claimed", token.status in SUCCESSFUL and certificate.claimed < certificate.k
    if claim is not None:
        # It is of the largest Ritz value of the search so far, each with the rounding of a decomposition of its own.
        yield "completeness.floor", not 0 <= claim.floor <= certificate.floor * (1 + 64 * eps)


def _is_floor(floor: float, token: TokenResult, surveyed: bool, eps: float) -> bool:
    """Whether a floor is c ε σ_1 √passes; of the passes of a token that was surveyed and polished, some are counted."""
    first = _first(token)
    if not first:
        return len(token.S) == 0 or floor == 0.0
    least, most = (noise_floor(eps, first, passes) for passes in (1, token.record["work"]["passes"]))
    return (least if surveyed else most) * (1 - 4 * eps) <= floor <= most * (1 + 4 * eps)


def _first(token: TokenResult) -> float:
    """Return what is known of σ_1."""
    if len(token.S):
        return float(token.S[0])
    return 0.0 if (claim := completeness_of(token)) is None else claim.sigma_1

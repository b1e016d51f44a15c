"""What a run reads in its vectors (decodings, stable ranks, contributions) and in its prompts, read again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.prompt import decode, read_prompts
from detjac_lanczos.operators import DetachedNetwork, Jacobian, JacobianBatch
from detjac_lanczos.reading import Contribution, Decoded, StableRank
from detjac_lanczos.reading.decode import HEADLESS
from detjac_lanczos.reading.head import head_of
from detjac_lanczos.runs.claims import Claim
from detjac_lanczos.runs.readings import CANDIDATES, read_triplets
from detjac_lanczos.runs.record import total_work
from detjac_lanczos.runs.run import Run
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers import Missed
from detjac_lanczos.solvers.rounding import SAFETY, adjoint_bound, epsilon, working_dtype

_SPARE = 10  # near-ties at the end of a list of candidates may change places


def token_claims(
    run: Run,
    network: DetachedNetwork,
    batch: JacobianBatch,
    tokens: Sequence[TokenResult],
    places: Mapping[str, Any],
    estimates: Mapping[int, Missed],
) -> Iterator[Claim]:
    """Read the stored triplets of ``tokens`` again; ``batch`` holds their operators.

    ``estimates``: what a survey knows of those that it left as estimates, found anew.

    Scores follow from the stored vectors and the weights: cosines may differ by c ε √d, logits by that times the
    longest row of the head they pass, and the logarithm of a share of softmax by 2 ‖y‖ times as much. Stable ranks and
    contributions need fresh products of the operator, which may differ by c ε √d of their length; those of estimates
    rest on random cotangents, √d as long as unit vectors.
    """
    _, readings = read_triplets(
        network,
        batch,
        tokens,
        target=places["target"],
        seed=run.record["options"]["seed"],
        estimates=estimates,
        top=CANDIDATES + _SPARE,
    )
    cosines = SAFETY * epsilon(working_dtype(batch.dtype)) * math.sqrt(max(batch.shapes[0]))
    products = adjoint_bound(epsilon(batch.dtype), max(batch.shapes[0]))
    row = 1.0
    if batch.operators[0].target.kind not in HEADLESS:
        head = head_of(network)
        row = abs(head.scale) * float(head.table.norm(dim=1).max())
    ends = {operator.prompt: operator.position for operator in batch.operators}
    lengths = {end[0]: float(network.value(Place("output"), *end).double().norm()) for end in ends.items()}
    for index, (token, operator, reading) in enumerate(zip(tokens, batch.operators, readings, strict=True)):
        rounding = products * (math.sqrt(batch.shapes[0][0]) if index in estimates else 1.0)
        length = max(float(operator.y.double().norm()), lengths[operator.prompt])
        yield _decoding_claim(token, "left", reading.left, cosines * row, 2 * max(length, 1.0))
        yield _decoding_claim(token, "right", reading.right, cosines)
        if reading.stable_rank is not None:
            yield _stable_rank_claim(token, reading.stable_rank, rounding)
        if reading.contribution is not None:
            largest = float(token.S[0]) if len(token.S) else run.record["options"]["threshold"] or 0.0
            yield _contribution_claim(token, operator, reading.contribution, rounding * largest)


def prompt_claims(run: Run, network: DetachedNetwork) -> Iterator[Claim]:
    """Compare texts and predictions with the tokenizer and the forward pass.

    The logarithm of a probability may differ by twice the rounding of the logits, c ε √d of the largest.
    """
    slack, logits = 2 * adjoint_bound(epsilon(network.dtype), network.hidden_size), network.last_logits
    for number, prompt in enumerate(network.prompts):
        text, written = run.prompts[number], run.record["prompt_tokens"][number]
        wrong = int(written != list(prompt.tokens)) + (text is not None and _ids(run, network, text) != prompt.ids)
        for token in (token for token in run.tokens if token.prompt == number):
            true = prompt.ids[token.index] if prompt.ids else None
            wrong += (token.id, token.token) != (true, prompt.tokens[token.index])
        yield Claim(f"differences between the text and the tokens of prompt {number}", 0.0, float(wrong), 0.0)
        probabilities = torch.softmax(logits[number].double(), dim=-1)
        best = probabilities.sort(descending=True).values.tolist()
        apart = 0.0 if len(run.predictions[number]) == len(network.predictions[number]) else math.inf
        for candidate, ranked in zip(run.predictions[number], best, strict=False):
            known = 0 <= candidate.id < len(best) and decode(network.loaded, candidate.id) == candidate.token
            own = float(probabilities[candidate.id]) if known else 0.0
            apart = max(apart, *(_ratio(candidate.probability, true) for true in (own, ranked)))
        allowed = slack * float(logits[number].abs().max())
        yield Claim(f"relative difference in the predictions after prompt {number}", 0.0, apart, allowed)


def copies_claim(run: Run) -> Claim:
    """Compare what the record says twice: of the first prompt alone, and in the list of all."""
    record = run.record
    copies = (("prompt", "prompts"), ("prediction", "predictions"), ("reconstruction", "reconstructions"))
    wrong = sum(record[one] != record[every][0] for one, every in copies)
    return Claim("differences between parts of the first prompt and their copies", 0.0, float(wrong), 0.0)


def work_claim(run: Run, batch: JacobianBatch) -> Claim:
    """Add the recorded work of the tokens up: the sums are measured again, the counts are not."""
    sums = total_work([token.record["work"] for token in run.tokens], batch)
    wrong = sum(run.record["work"][name] != value for name, value in sums.items())
    return Claim("differences between the work of the run and the sum over its tokens", 0.0, float(wrong), 0.0)


def _decoding_claim(
    token: TokenResult, side: str, fresh: list[list[Decoded]], slack: float, temperature: float = 0.0
) -> Claim:
    """Compare scores and logits of the same token and of the same rank; a wrong token is infinitely far.

    Shares of softmax are compared as logits, by their logarithms over ``temperature``; 0 marks cosines.
    """
    recorded = token.record[side]
    worst = 0.0 if len(recorded) == len(fresh) else math.inf
    for entries, candidates in zip(recorded, fresh, strict=False):
        if len(entries) != min(CANDIDATES, len(candidates)):
            worst = math.inf
        by_id = {candidate.id: candidate for candidate in candidates}
        for entry, ranked in zip(entries, candidates, strict=False):
            same = by_id.get(entry["id"])
            if same is None or same.token != entry["token"]:
                worst = math.inf
                continue
            for true in (same.score, ranked.score):
                ratio = _ratio(entry["score"], true) / temperature if temperature else abs(entry["score"] - true)
                worst = max(worst, ratio)
            if same.logit is not None:
                worst = max(worst, abs(entry["logit"] - same.logit))
    return Claim(f"difference in the decoded {side} vectors of {token.name}", 0.0, worst, slack)


def _stable_rank_claim(token: TokenResult, fresh: StableRank, slack: float) -> Claim:
    record = token.record
    written = (record["stable_rank"], *(record["stable_rank_interval"] or ()), record["stable_rank_confidence"])
    apart = math.inf
    if len(written) == 4 and None not in written:
        again = (fresh.value, *fresh.interval, fresh.confidence)
        apart = max(abs(one - other) for one, other in zip(written, again, strict=True))
    return Claim(f"difference in the stable rank of {token.name}", 0.0, apart, 2 * slack * fresh.interval[1])


def _contribution_claim(token: TokenResult, operator: Jacobian, fresh: Contribution, slack: float) -> Claim:
    """J x is known to c ε √d σ_1 ‖x‖: relative to ‖J x‖ that moves the cosine twice, what is captured four times.

    ``slack`` is all of that but ‖x‖.
    """
    written, apart = token.contribution, math.inf
    if written is not None:
        apart = max(abs(written[name] - getattr(fresh, name)) for name in ("share", "cosine", "captured"))
    length = fresh.share * float(operator.y.double().norm())
    error = slack * float(operator.x.double().norm())
    allowed = 4 * error / length * max(1.0, fresh.share) if length else 0.0
    return Claim(f"difference in the contribution of {token.name}", 0.0, apart, allowed)


def _ids(run: Run, network: DetachedNetwork, text: str) -> tuple[int, ...]:
    options = {name: run.record["options"][name] for name in ("chat", "add_special_tokens")}
    try:
        (prompt,) = read_prompts(network.loaded, text, **options, input_ids=None, inputs_embeds=None)
    except InputError:
        return ()
    return prompt.ids


def _ratio(written: float, true: float) -> float:
    """Return the logarithm of how many times one is the other; infinite for what is no share."""
    if written == true:
        return 0.0
    return abs(math.log(written / true)) if written > 0 and true > 0 else math.inf

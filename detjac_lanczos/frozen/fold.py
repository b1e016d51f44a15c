"""Rewrite rules that make a captured chain cheap and keep the map in exact arithmetic.

A per-row scale commutes with `Linear`, `ColumnScale` and `Center`; beside a `Gate`, a `Mix` or nested chains it is
absorbed; passing a `Bias` it leaves its factor there. A Llama branch ends as one column scale, two GEMMs and one
elementwise product: every rstd has vanished into a gate or a mixing matrix. `fuse` then hands the elementwise
neighbours of each GEMM to the GEMM.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from detjac_lanczos.frozen.maps import Bias, ColumnScale, Gate, Linear, Map, Mix, Nested, RowScale
from detjac_lanczos.frozen.rebuilt import RebuiltMixing


def fold(chain: Sequence[Map], prompt_lengths: Sequence[int], *, scale_factors: bool) -> tuple[Map, ...]:
    """Absorb every row scale of a chain that has a gate, a mixing or a sum to go to.

    Parameters
    ----------
    chain : sequence of Map
    prompt_lengths : sequence of int
        Positions of each prompt: a row scale runs over all prompts one after another.
    scale_factors : bool
        True for factors as captured: gates and mixing matrices, or the scales of those that are made again, are
        multiplied **in place** (a second copy of them would be the largest tensors of a long prompt). False for factors
        that hold their row scales already: only the chain is rewritten.
    """
    steps: list[Map] = list(chain)
    index = 0
    while index < len(steps):
        step = steps[index]
        if not isinstance(step, RowScale):
            index += 1
            continue
        target = _absorber(steps, index)
        if target is None:
            index += 1
            continue
        _pass_biases(steps, index, target, step.r)
        steps[target] = _absorb(steps[target], step.r, target > index, prompt_lengths, scale_factors)
        del steps[index]
    return tuple(steps)


def _absorber(steps: Sequence[Map], index: int) -> int | None:
    """Return the nearest step, to the right and then to the left, that can take the row scale at ``index``."""
    for walk in (range(index + 1, len(steps)), range(index - 1, -1, -1)):
        for position in walk:
            if isinstance(steps[position], Gate | Mix | Nested | RowScale):
                return position
    return None


def _pass_biases(steps: list[Map], index: int, target: int, r: Tensor) -> None:
    """Correct the biases in between: r moving right past ``+ b`` turns b into b/r, moving left into r b."""
    between = range(index + 1, target) if target > index else range(target + 1, index)
    factor = r.reciprocal() if target > index else r
    for position in between:
        step = steps[position]
        if isinstance(step, Bias):
            steps[position] = step.scaled(factor)


def _absorb(step: Map, r: Tensor, scale_comes_first: bool, prompt_lengths: Sequence[int], scale_factors: bool) -> Map:
    match step:
        case RowScale():
            return RowScale(step.r * r)
        case Nested():
            chains = []
            for index, chain in enumerate(step.chains):
                part = RowScale(step.row_factor(r, index))
                extended = (part, *chain) if scale_comes_first else (*chain, part)
                chains.append(fold(extended, prompt_lengths, scale_factors=scale_factors))
            return step.with_chains(chains)
        case Gate():
            if scale_factors:
                step.g.mul_(r[:, None])
            return step
        case Mix():
            if scale_factors:
                for probabilities, part in zip(step.probabilities, r.split(list(prompt_lengths)), strict=True):
                    if isinstance(probabilities, RebuiltMixing):
                        (probabilities.scale_keys if scale_comes_first else probabilities.scale_queries)(part)
                    else:
                        probabilities.mul_(part if scale_comes_first else part[:, None])
            return step
        case _:
            raise TypeError(f"{type(step).__name__} cannot absorb a row scale")


def fuse(chain: Sequence[Map]) -> tuple[Map, ...]:
    """Give each GEMM the column scale before it, and the gate and column scale after it; reorder nothing."""
    steps: list[Map] = []
    for step in chain:
        if isinstance(step, Nested):
            step = step.with_chains([fuse(part) for part in step.chains])
        last = steps[-1] if steps else None
        if isinstance(step, Linear) and isinstance(last, ColumnScale):
            steps[-1] = replace(step, scale=last.w)
        elif isinstance(step, Gate) and isinstance(last, Linear) and last.gate is None and last.out_scale is None:
            steps[-1] = replace(last, gate=step)
        elif isinstance(step, ColumnScale) and isinstance(last, Linear) and last.out_scale is None:
            steps[-1] = replace(last, out_scale=step.w)
        else:
            steps.append(step)
    return tuple(steps)

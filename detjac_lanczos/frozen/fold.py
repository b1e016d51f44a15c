"""Rewrite rules that make a captured chain cheap and keep the map in exact arithmetic.

A per-row scale commutes with `Linear`, `ColumnScale` and `Center`; beside a `Gate`, a `Mix` or nested chains it is
absorbed; passing a `Bias` it leaves its factor there. A Llama branch ends as one column scale, two GEMMs and one
elementwise product: every rstd has vanished into a gate or a mixing matrix. `fuse` then hands the elementwise
neighbours of each GEMM to the GEMM.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from detjac_lanczos.frozen.maps import Bias, ColumnScale, Gate, Linear, Map, Mix, Nested, RowScale
from detjac_lanczos.frozen.rebuilt import RebuiltMixing


def fold(chain: Sequence[Map]) -> tuple[Map, ...]:
    """Return a chain without the row scales that a gate, a mixing or a sum can take.

    Gates and mixing matrices stay as they are: they hold these scales since `scale_factors`.
    """
    return _folded(chain)[0]


def scale_factors(chain: Sequence[Map], prompt_lengths: Sequence[int]) -> None:
    """Multiply the gates and mixing matrices of a chain **in place** by the row scales that `fold` takes out of it.

    Once, as they are captured; of mixings that are made again the scales are multiplied. A second copy of these factors
    would be the largest tensors of a long prompt.

    Parameters
    ----------
    chain : sequence of Map
    prompt_lengths : sequence of int
        Positions of each prompt: a row scale runs over all prompts one after another.
    """
    for absorbed in _folded(chain)[1]:
        absorbed.scale_(prompt_lengths)


@dataclass(frozen=True, eq=False)
class _Absorbed:
    """A row scale that stood before or after a gate or a mixing, in (N,) positions."""

    by: Gate | Mix
    r: Tensor
    before: bool

    def scale_(self, prompt_lengths: Sequence[int]) -> None:
        """Multiply the factor, in place."""
        if isinstance(self.by, Gate):
            self.by.g.mul_(self.r[:, None])
            return
        for probabilities, part in zip(self.by.probabilities, self.r.split(list(prompt_lengths)), strict=True):
            if isinstance(probabilities, RebuiltMixing):
                (probabilities.scale_keys if self.before else probabilities.scale_queries)(part)
            else:
                probabilities.mul_(part if self.before else part[:, None])


def _folded(chain: Sequence[Map]) -> tuple[tuple[Map, ...], list[_Absorbed]]:
    """Return the chain without the row scales that something absorbs, and what the gates and mixings absorb."""
    steps: list[Map] = list(chain)
    absorbed: list[_Absorbed] = []
    index = 0
    while index < len(steps):
        step = steps[index]
        if not isinstance(step, RowScale) or (target := _absorber(steps, index)) is None:
            index += 1
            continue
        _pass_biases(steps, index, target, step.r)
        before, taker = target > index, steps[target]
        match taker:
            case RowScale():
                steps[target] = RowScale(taker.r * step.r)
            case Gate() | Mix():
                absorbed.append(_Absorbed(taker, step.r, before))
            case Nested():
                parts = [
                    _folded((part, *inner) if before else (*inner, part))
                    for inner, part in zip(taker.chains, _shared_out(taker, step.r), strict=True)
                ]
                steps[target] = taker.with_chains([inner for inner, _ in parts])
                absorbed += [each for _, inside in parts for each in inside]
        del steps[index]
    return tuple(steps), absorbed


def _absorber(steps: Sequence[Map], index: int) -> int | None:
    """Return the nearest step, to the right and then to the left, that can take the row scale at ``index``."""
    for walk in (range(index + 1, len(steps)), range(index - 1, -1, -1)):
        for position in walk:
            if isinstance(steps[position], Gate | Mix | Nested | RowScale):
                return position
    return None


def _shared_out(nested: Nested, r: Tensor) -> list[RowScale]:
    """Return a row scale as each of the nested chains counts positions."""
    return [RowScale(nested.row_factor(r, index)) for index in range(len(nested.chains))]


def _pass_biases(steps: list[Map], index: int, target: int, r: Tensor) -> None:
    """Correct the biases in between: r moving right past ``+ b`` turns b into b/r, moving left into r b."""
    between = range(index + 1, target) if target > index else range(target + 1, index)
    factor = r.reciprocal() if target > index else r
    for position in between:
        step = steps[position]
        if isinstance(step, Bias):
            steps[position] = step.scaled(factor)


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

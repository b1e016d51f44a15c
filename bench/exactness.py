"""How far the Jacobians of one model lie from reverse mode, from its pinned modules run again, and from each other."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import detjac_lanczos as dl
from detjac_lanczos.frozen.words import Freeze
from tests.oracles import OracleA, OracleB, embeddings_of, errors
from tests.tiny_models import LENGTH, prompt_ids


@dataclass(frozen=True)
class Figures:
    """Largest relative deviations over all targets (and sources, for those of J).

    Attributes
    ----------
    norm, entry : float
        J of all tokens against reverse mode through the model's own modules with detached factors: Frobenius norm of
        the difference, and its largest entry, each relative to that of J.
    token_norm, token_entry : float
        The same of single tokens' Jacobians.
    token_truth, reverse_truth, swept_truth : float
        Of single tokens' Jacobians in float32, the worse of both errors against reverse mode of the same weights in
        float64: of ours, of reverse mode in float32 itself, and of our float32 sweeps of frozen factors that a float64
        pass gave, rounded.
    pinned : float
        ‖J δ − (f(x + δ) − f(x))‖ / ‖J δ‖ of the modules with every frozen factor pinned, ‖δ‖ = ‖x‖.
    adjoint : float
        |⟨u, J v⟩ − ⟨Jᵀ u, v⟩| / (‖u‖ ‖J v‖) for random u, v.
    reconstruction : float
        ‖Σ J_i x_i + r − y‖ / ‖y‖.
    offset : float
        ‖r‖ / ‖y‖ at the output.
    """

    norm: float = 0.0
    entry: float = 0.0
    token_norm: float = 0.0
    token_entry: float = 0.0
    token_truth: float = 0.0
    reverse_truth: float = 0.0
    swept_truth: float = 0.0
    pinned: float = 0.0
    adjoint: float = 0.0
    reconstruction: float = 0.0
    offset: float = 0.0

    def worst(self, other: "Figures") -> "Figures":
        """Return the larger of each."""
        return Figures(*map(max, vars(self).values(), vars(other).values()))


def measure(make: Callable[[torch.dtype], Any], dtype: torch.dtype, freeze: Freeze) -> Figures:
    """Measure one tiny model in one precision.

    Targets are the output, the residual stream before it, the logits, and every block's stream, attention and MLP;
    sources the embeddings and the stream entering block 1.
    """
    model, ids = make(dtype), prompt_ids(LENGTH)[0]
    network = dl.detach((model, None), input_ids=ids, freeze=freeze)
    x = embeddings_of(model, ids)
    reverse, pinned = OracleA(model, x, freeze), OracleB(model, x, freeze)
    truth = swept = None
    if dtype is torch.float32:
        double = copy.deepcopy(model).double()
        truth = OracleA(double, embeddings_of(double, ids), freeze)
        swept = _with_factors_of(network, dl.detach((double, None), input_ids=ids, freeze=freeze))
    generator = torch.Generator().manual_seed(0)
    delta = _normal(x.shape, dtype, generator)
    delta *= x.norm() / delta.norm()
    change = pinned.change(delta)
    figures = Figures()
    for name, place, last in _targets(network.blocks):
        joint = network.jacobian("joint", target=place)
        moved = joint.matmat(delta.flatten()[:, None])[:, 0]
        there = Figures(
            pinned=float((moved - change[name][-1]).norm() / moved.norm()),
            reconstruction=joint.reconstruction.norm_error,
        )
        figures = figures.worst(there)
        for source, at in (("embeddings", "embeddings"), (1, dl.layer(1))):
            if isinstance(source, int) and last < source:
                continue
            expected = reverse.jacobian(source, name, LENGTH - 1)
            exact = None if truth is None else truth.jacobian(source, name, LENGTH - 1)
            figures = figures.worst(_against(network, at, place, expected, exact))
            if swept is not None and exact is not None:
                figures = figures.worst(Figures(swept_truth=max(_worst_token(_tokens(swept, at, place), exact))))
            figures = figures.worst(_adjointness(network.jacobian("joint", source=at, target=place), generator))
    return figures.worst(Figures(offset=network.reconstruction.offset_share))


def _targets(blocks: int) -> Iterator[tuple[str, Any, int]]:
    """Yield the oracle's name of each target, the library's place, and the last block before it."""
    for name in ("output", "residual", "logits"):
        yield name, name, blocks - 1
    for index in range(blocks):
        for role, place in (("layer", dl.layer), ("attention", dl.attention), ("mlp", dl.mlp)):
            yield f"{role}.{index}", place(index), index


def _against(network: Any, source: Any, target: Any, expected: Tensor, exact: Tensor | None) -> Figures:
    """Compare J of every token with (d_out, n, d) of reverse mode, in its precision and in float64."""
    found = _tokens(network, source, target)
    single = _worst_token(found, expected)
    if exact is None:
        return Figures(*_errors(found, expected), *single)
    return Figures(
        *_errors(found, expected), *single, max(_worst_token(found, exact)), max(_worst_token(expected, exact))
    )


def _tokens(network: Any, source: Any, target: Any) -> Tensor:
    """Return J of every token side by side: (d_out, n, d)."""
    batch = network.jacobians(source=source, target=target)
    eye = torch.eye(batch.shapes[0][0], dtype=batch.dtype)
    products = batch.rmatmat([(token, eye) for token in range(len(batch))])
    return torch.stack([product.T for product in products], dim=1)


def _with_factors_of(network: dl.DetachedNetwork, other: dl.DetachedNetwork) -> dl.DetachedNetwork:
    """Return a network with the frozen factors of another, rounded to its own dtype."""
    factors = {
        name: value.to(network.dtype) if value.is_floating_point() else value
        for name, value in other.coefficients.items()
    }
    return replace(network, coefficients=factors)


def _worst_token(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the largest relative errors of one token's Jacobian, of (d_out, n, d)."""
    single = [_errors(found[:, token], expected[:, token]) for token in range(found.shape[1])]
    norms, entries = zip(*single, strict=True)
    return max(norms), max(entries)


def _errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Relative errors; where a window has closed before a token, J is zero and must be found so."""
    if not expected.any():
        return (math.inf, math.inf) if found.any() else (0.0, 0.0)
    return errors(found, expected)


def _adjointness(joint: Any, generator: torch.Generator) -> Figures:
    u, v = (_normal((size, 1), joint.dtype, generator) for size in joint.shape)
    forward, back = joint.matmat(v), joint.rmatmat(u)
    gap = (u.double() * forward.double()).sum() - (back.double() * v.double()).sum()
    return Figures(adjoint=float(gap.abs() / (u.double().norm() * forward.double().norm())))


def _normal(shape: Any, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

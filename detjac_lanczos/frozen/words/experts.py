"""Routed experts: choices, weights and every expert's gate are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.frozen.experts import Experts
from detjac_lanczos.frozen.maps import Bias, Linear, Map, RowScale
from detjac_lanczos.frozen.sizes import BlockShape, ExpertShape
from detjac_lanczos.frozen.tape import Tape
from detjac_lanczos.frozen.words.product import GATED, Product, factors, product_maps
from detjac_lanczos.frozen.words.word import Coefficients, Freeze, reading
from detjac_lanczos.models.linear_modules import expert_weight
from detjac_lanczos.models.offloaded import tensor_of, with_values
from detjac_lanczos.models.streaming import weight_from
from detjac_lanczos.models.weights import Weight


@dataclass(frozen=True)
class RoutedExperts:
    """Σ_e s_te down_e(product(gate_e x_t, up_e x_t)) over the experts of position t, with the routing frozen.

    The module at ``path`` holds ``gate_up_proj`` and ``down_proj`` for all experts, and their biases where it has any.

    Parameters
    ----------
    path : str
        Module of the experts. Without ``router`` it is called with (x, indices, weights).
    router : str, optional
        Module whose first output is a score (positions, experts), zero for experts not chosen, that multiplies the
        expert's **input** instead of its output.
    stored_transposed : bool
        Whether an expert's matrices are (in, out).
    interleaved : bool
        Whether gate and up alternate row by row; otherwise gate rows come first.
    product : Product
    """

    path: str
    router: str | None = None
    stored_transposed: bool = False
    interleaved: bool = False
    product: Product = GATED

    def observe(self, block: nn.Module, name: str, record: Tape, freeze: Freeze) -> None:
        """Record, for each expert in use, its positions (m,), its weights (m,) and its frozen factors (m, f)."""
        experts: Any = block.get_submodule(self.path)

        def keep(x: Tensor, routes: Iterator[tuple[int, Tensor, Tensor]]) -> None:
            owner = getattr(experts, "act_fn", experts)
            with with_values(experts) as here:
                for e, token, weight in routes:
                    rows = x[token] if self.router is None else x[token] * weight[:, None]
                    z, u = (self._affine_half(e, half, here, rows) for half in (0, 1))
                    prefix = f"{name}{self.path}.{e}"
                    record(f"{prefix}.positions", token + record.start)
                    record(f"{prefix}.weight", weight)
                    for key, value in factors(self.product, owner, z, u, freeze).items():
                        record(f"{prefix}.{key}", value)

        @reading(self, name)
        def routed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, indices, weights = (*args, *kwargs.values())[:3]
            keep(x, _by_expert(indices, weights))

        @reading(self, name)
        def scored(_: nn.Module, args: tuple[Any, ...], out: tuple[Tensor, ...]) -> None:
            keep(args[0].flatten(0, -2), _by_score(out[0]))

        if self.router is None:
            experts.register_forward_pre_hook(routed, with_kwargs=True)
        else:
            block.get_submodule(self.router).register_forward_hook(scored)

    def shape(self, block: nn.Module, freeze: Freeze) -> BlockShape:
        """For each position and each of its experts: frozen factors, the weight, and the position itself."""
        experts: Any = block.get_submodule(self.path)
        router: Any = None if self.router is None else block.get_submodule(self.router)
        chosen: int = experts.config.num_experts_per_tok if router is None else router.top_k
        width, d = self._half(0, 0, experts).shape
        return BlockShape(
            experts=(ExpertShape(width, chosen, width * d if self.interleaved else 0),),
            numbers=chosen * (1 + width * len(self.product.names(freeze))),
            integers=chosen,
        )

    def maps(self, block: nn.Module, name: str, coefficients: Coefficients, freeze: Freeze) -> list[Map]:
        """Return the routed sum of the experts in use."""
        experts: Any = block.get_submodule(self.path)
        chains, routed = [], []
        prefix, suffix = f"{name}{self.path}.", ".positions"
        used = sorted(
            int(k[len(prefix) : -len(suffix)]) for k in coefficients if k.startswith(prefix) and k.endswith(suffix)
        )
        half_biases, down_biases = tensor_of(experts, "gate_up_proj_bias"), tensor_of(experts, "down_proj_bias")

        def half(e: int, index: int) -> list[Map]:
            bias = None if half_biases is None else half_biases[e][self._cut(len(half_biases[e]), index)]
            return _affine(weight_from(experts, partial(self._half, e, index)), bias)

        for e in used:
            weight: list[Map] = [RowScale(coefficients[f"{prefix}{e}.weight"])]
            product = product_maps(partial(half, e, 0), partial(half, e, 1), f"{prefix}{e}", coefficients)
            out = _affine(weight_from(experts, partial(self._down, e)), None if down_biases is None else down_biases[e])
            chains.append((*product, *out, *weight) if self.router is None else (*weight, *product, *out))
            routed.append(coefficients[f"{prefix}{e}{suffix}"])
        return [Experts(tuple(chains), tuple(routed), self._down(0, experts).shape[0])]

    def _half(self, e: int, index: int, experts: Any) -> Weight:
        """Gate (0) or up (1) of an expert: (f, d)."""
        whole = expert_weight(experts, "gate_up_proj", e, transposed=self.stored_transposed)
        rows = self._cut(whole.shape[0], index)
        return expert_weight(experts, "gate_up_proj", e, transposed=self.stored_transposed, rows=rows)

    def _down(self, e: int, experts: Any) -> Weight:
        return expert_weight(experts, "down_proj", e, transposed=self.stored_transposed)

    def _affine_half(self, e: int, index: int, experts: Any, rows: Tensor) -> Tensor:
        """Return gate (0) or up (1) of rows (m, d), with its bias: (m, f)."""
        out, bias = self._half(e, index, experts).apply(rows), getattr(experts, "gate_up_proj_bias", None)
        return out if bias is None else out + bias[e][self._cut(len(bias[e]), index)]

    def _cut(self, size: int, index: int) -> slice:
        """Which of ``size`` rows are gate (0) or up (1)."""
        return slice(index, None, 2) if self.interleaved else slice(index * (size // 2), (index + 1) * (size // 2))


def _affine(weight: Weight, bias: Tensor | None) -> list[Map]:
    return [Linear(weight)] if bias is None else [Linear(weight), Bias(bias)]


def _by_expert(indices: Tensor, weights: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each expert in use with its positions, ascending, and their weights, from (positions, k) choices."""
    for e in indices.unique().tolist():
        token, slot = torch.where(indices == e)
        yield e, token, weights[token, slot]


def _by_score(scores: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the same from scores (positions, experts) that are zero for experts not chosen."""
    for e in range(scores.shape[1]):
        token = scores[:, e].nonzero()[:, 0]
        if len(token):
            yield e, token, scores[token, e]

"""Products with Jacobians by automatic differentiation of the model's own modules, forwards and in reverse."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import module as _modules

from detjac_lanczos.errors import ModelError, OperatorError, first_line
from detjac_lanczos.frozen.affine import AffineNetwork
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.places import Place, check_reach
from detjac_lanczos.frozen.precision import in_own_precision, require_exact_products
from detjac_lanczos.models.saved_weights import weights_read_again
from detjac_lanczos.operators.bars import own_pass_bar
from detjac_lanczos.operators.passes import Passes

ROWS_AT_ONCE = 1024
"""Positions × columns that are differentiated together; bounds the memory of a pass."""

_one_at_a_time = threading.Lock()
"""Forward mode has one level for the whole process, and the copy that runs has one set of hooks."""


class AutogradSweeps:
    """Sweeps through the model itself: every column is differentiated at the prompt, over all its positions.

    A column forwards is one tangent on a copy of the prompt of its own; in reverse, columns share one recorded pass.
    """

    route = "autograd"

    def __init__(self, passes: Passes, network: AffineNetwork, source: int, target: Place) -> None:
        check_reach(source, target, network.output_size)
        passes.end(target)
        self.passes, self.network, self.source, self.target = passes, network, source, target
        self._own_values: dict[tuple[int, int], Tensor] = {}
        self.d_in = network.inputs(source, 0).shape[1]
        self.d_out = network.width_at(target)

    @torch.inference_mode(False)
    @in_own_precision
    def forward(self, segments: Sequence[Segment], rows: Tensor) -> Tensor:
        """(Σ source rows, d_in) to (Σ widths, d_out)."""
        tangents = [
            self._inputs(segment, part)
            for segment, part in zip(segments, rows.split([s.source_rows for s in segments]), strict=True)
        ]
        out: list[Tensor] = [rows.new_empty(0, self.d_out)] * len(segments)
        for prompt, position, members in _by_end(segments):
            products = self._jvp(prompt, position, torch.cat([tangents[i] for i in members]))
            for i, part in zip(members, products.split([segments[i].width for i in members]), strict=True):
                out[i] = part
        return torch.cat(out)

    @torch.inference_mode(False)
    @in_own_precision
    def transposed(self, segments: Sequence[Segment], rows: Tensor) -> Tensor:
        """(Σ widths, d_out) to (Σ source rows, d_in)."""
        cotangents = rows.split([s.width for s in segments])
        out: list[Tensor] = [rows.new_empty(0, self.d_in)] * len(segments)
        for prompt, position, members in _by_end(segments):
            gradients = self._vjp(prompt, position, torch.cat([cotangents[i] for i in members]))
            for i, part in zip(members, gradients.split([segments[i].width for i in members]), strict=True):
                s = segments[i]
                positions = part[:, s.start : s.position + 1] if s.joint else part[:, s.start : s.start + 1]
                out[i] = positions.transpose(0, 1).flatten(0, 1)
        return torch.cat(out)

    def cost(self, segment: Segment) -> float:
        """Row-sweeps of one column: all rows of the prompt, through all blocks."""
        return float(self.network.lengths[segment.prompt])

    def _inputs(self, segment: Segment, rows: Tensor) -> Tensor:
        """Place source rows in copies of their prompt, zero elsewhere: (width, n, d)."""
        inputs = rows.new_zeros(segment.width, self.network.lengths[segment.prompt], self.d_in)
        if segment.joint:
            columns = rows.view(segment.length, segment.width, self.d_in).transpose(0, 1)
            inputs[:, segment.start : segment.position + 1] = columns
        else:
            inputs[:, segment.start] = rows
        return inputs

    def _jvp(self, prompt: int, position: int, tangents: Tensor) -> Tensor:
        """(b, n, d) to (b, d_out)."""
        x = self.network.inputs(self.source, prompt)
        own, products = self._own_value(prompt, position), [tangents.new_empty(0, self.d_out)]
        with _one_at_a_time:
            for part in _together(tangents, len(x)):
                with _dual_level():
                    dual = forward_ad.make_dual(x.repeat(len(part), 1, 1), part)
                    y = self._run(dual, prompt, position)
                    _require_own(forward_ad.unpack_dual(y).primal, own, self.network)
                    product = forward_ad.unpack_dual(self._read(y)).tangent
                products.append(product if product is not None else part.new_zeros(len(part), self.d_out))
        return torch.cat(products)

    def _vjp(self, prompt: int, position: int, cotangents: Tensor) -> Tensor:
        """(b, d_out) to (b, n, d)."""
        _refuse_hooks_on_gradients()
        x = self.network.inputs(self.source, prompt)
        own, products = self._own_value(prompt, position), [x.new_empty(0, *x.shape)]
        with _one_at_a_time, torch.enable_grad():
            leaf = x.clone().requires_grad_()
            with weights_read_again(self.passes.model):
                y = self._run(leaf[None], prompt, position)[0]
            _require_own(y.detach()[None], own, self.network)
            y = self._read(y)

            def pull(cotangent: Tensor) -> Tensor:
                return torch.autograd.grad(y, leaf, cotangent, retain_graph=True)[0]

            for part in _together(cotangents, len(x)):
                products.append(torch.func.vmap(pull)(part))
        return torch.cat(products)

    def _own_value(self, prompt: int, position: int) -> Tensor:
        """Return what `_run` gave when the network was frozen: (d_out,), of a probe the output that it reads."""
        key = prompt, position
        if key not in self._own_values:
            end = self.target if self.target.rows is None else Place("output")
            self._own_values[key] = self.network.value(end, prompt, position)
        return self._own_values[key]

    def values(self, prompt: int, position: int, inputs: Tensor) -> Tensor:
        """Return the target's values at inputs (b, n, d): (b, d_out)."""
        with _one_at_a_time:
            parts = [self._read(self._run(part, prompt, position)) for part in _together(inputs, inputs.shape[1])]
            return torch.cat([inputs.new_empty(0, self.d_out), *parts])

    def _read(self, y: Tensor) -> Tensor:
        """Return the target of what the model gives: a probe's rows of the output."""
        return y if self.target.rows is None else y @ self.target.rows.to(y).T

    def _run(self, x: Tensor, prompt: int, position: int) -> Tensor:
        self.network.hooks.require_same(self.network.loaded.name)
        embeddings = self.network.inputs(-1, prompt)
        require_exact_products(x.dtype, x.device)
        try:
            return self.passes.run(x, embeddings, self.source, self.target, prompt, position)
        except NotImplementedError as error:
            raise OperatorError(f"a module of this model cannot be differentiated: {first_line(error)}") from error


def _require_own(values: Tensor, own: Tensor, network: AffineNetwork) -> None:
    """Refuse passes whose values (b, d_out) are not the frozen one's, (d_out,)."""
    size = float(own.double().norm()) * len(values) ** 0.5
    if not float((values.double() - own.double()).norm()) <= own_pass_bar(own.dtype) * size:
        raise ModelError(
            f"{network.loaded.name} gives another output on the prompt than when it was frozen: something in it, or a "
            "hook on all modules, has changed; undo that, or detach again"
        )


def _refuse_hooks_on_gradients() -> None:
    if _modules._global_backward_hooks or _modules._global_backward_pre_hooks:
        raise ModelError(
            "hooks on the gradients of all modules would change products in reverse mode; remove what "
            "torch.nn.modules.module.register_module_full_backward_hook (or its pre-hook) gave"
        )


def _together(columns: Tensor, positions: int) -> Sequence[Tensor]:
    """Return as many columns at a time as are differentiated together; of none, nothing, which no module need take."""
    return columns.split(max(1, ROWS_AT_ONCE // positions)) if len(columns) else ()


@contextmanager
def _dual_level() -> Iterator[None]:
    try:
        forward_ad.enter_dual_level()
    except RuntimeError as error:  # torch has one level
        raise OperatorError(
            "these products are made in forward mode, and torch nests none in another (jvp, jacfwd, hessian): "
            "differentiate them in reverse mode (grad, vjp, jacrev), or start Python anew if an interrupt left one open"
        ) from error
    try:
        _first_dual()
        yield
    finally:
        forward_ad.exit_dual_level()


@cache
def _first_dual() -> None:
    """Make a dual tensor: the first one has torch compile what warns (it is deprecated), an error to some callers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward_ad.make_dual(torch.zeros(1, device="cpu"), torch.zeros(1, device="cpu"))


def _by_end(segments: Sequence[Segment]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield prompts and output positions, each with the segments that end there."""
    ends: dict[tuple[int, int], list[int]] = {}
    for i, segment in enumerate(segments):
        ends.setdefault((segment.prompt, segment.position), []).append(i)
    for (prompt, position), members in ends.items():
        yield prompt, position, members

"""Is a recognised decoder affine part by part? A branch that is not may hide beside a large residual stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.frozen.calls import entering, leaving
from detjac_lanczos.operators.autograd import ROWS_AT_ONCE
from detjac_lanczos.operators.bars import require
from detjac_lanczos.operators.pinned import PinnedNetwork

_BARS = {torch.float64: 1e-9, torch.float32: 5e-5, torch.float16: 0.01}
"""Largest defect of a sound part, relative to its values; 0.05 in bfloat16.

Rounding alone gives at most 4e-16, 8.1e-7 and 1.2e-3 over all recognised families of the tests and both embedded models
(30 blocks), 1.4e-2 in bfloat16. An attention with a sigmoid gate that nobody froze is off by 0.3, a tanh by 0.1 to 0.3.
"""

_SIZES = (1.0, 8.0, 100.0)
"""Of the inputs, in units of the prompt's: what bends does so the more the larger it is, until float16 overflows."""

_POSITIONS = 16
"""The most positions of the prompt that are compared."""

_ROUNDING = 2.0
"""What a block adds to the stream is rounded with the stream: by so many of its ε at the most."""


@dataclass(frozen=True, eq=False)
class Value:
    """What a part gave for every input, and what rounding of the stream may add to it.

    Attributes
    ----------
    part : str
    rows : Tensor, shape (inputs, positions · width), float64
    rounding : Tensor, shape (inputs,)
    """

    part: str
    rows: Tensor
    rounding: Tensor


def require_affine_parts(network: PinnedNetwork) -> None:
    """Check attention, MLP and increment of every block on random inputs, on the first prompt.

    Raises
    ------
    UnsupportedModelError
        Naming the first part whose f(a + b) is not f(a) + f(b) - f(0).
    """
    x = network.inputs(-1, 0)
    noise = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    unit = float(x.double().square().mean().sqrt())
    inputs = [torch.zeros_like(x)]
    for size in _SIZES:
        a, b = (size * unit * noise).to(x)
        inputs += [a, b, a + b]
    at_once = torch.stack(inputs).split(max(1, ROWS_AT_ONCE // len(x)))
    for values in zip(*(_values(network, part) for part in at_once), strict=True):
        rows, rounding = torch.cat([v.rows for v in values]), torch.cat([v.rounding for v in values])
        claim = f"{values[0].part} is not affine"
        for i, size in enumerate(_SIZES):
            f0, fa, fb, fab = terms = rows[[0, 3 * i + 1, 3 * i + 2, 3 * i + 3]]
            if size > 1.0 and not torch.isfinite(terms).all():
                continue
            defect = float((fab - fa - fb + f0).norm()) - float(rounding[3 * i + 3])
            error = max(defect, 0.0) / (float(terms.norm(dim=1).sum()) or 1.0)
            require(network, [(claim, error, _BARS.get(network.dtype, 0.05))])


def _values(network: PinnedNetwork, inputs: Tensor) -> list[Value]:
    """Return what every part gives for inputs (m, n, d) in place of the prompt's, in the order of the calls."""
    found: list[Value] = []
    m, n, _ = inputs.shape
    positions = torch.linspace(0, n - 1, min(_POSITIONS, n), device=inputs.device).long()

    def rows(value: Tensor) -> Tensor:
        return value.reshape(m, n, -1)[:, positions.to(value.device)].flatten(1).double()

    def keep(path: str, *, increment: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            part, values, rounding = path, rows(leaving(out)), torch.zeros(m, device="cpu")
            if increment:
                rounding = _ROUNDING * torch.finfo(network.dtype).eps * values.norm(dim=1)
                part, values = f"what {path} adds", values - rows(entering(args, kwargs))
            found.append(Value(part, values.cpu(), rounding.cpu()))

        return hook

    structure, trace = network.passes.structure, network.passes.trace
    blocks = [f"{structure.path}.{index}" for index in range(network.blocks)]
    mlps = [mlp.consumer if path in blocks else path for path, mlp in trace.mlps.items()]
    with ExitStack() as stack:
        for path in (*structure.attentions, *mlps, *blocks):
            module, hook = network.passes.model.get_submodule(path), keep(path, increment=path in blocks)
            stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        network.apply(inputs)
    return found

"""What norms, MLPs and branches of an undeclared decoder are, read off the values that enter and leave its modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.calls import entering, leaving
from detjac_lanczos.frozen.maps import Bias, Center, ColumnScale, Map, RowScale
from detjac_lanczos.frozen.structure import Structure, is_activation
from detjac_lanczos.frozen.words.norms import declared_eps
from detjac_lanczos.models.offloaded import tensor_of

Calls = Mapping[str, tuple[Tensor, Tensor]]
"""What entered and what left each module of a block, by path."""

_BARS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative distance under which two values are the same but for rounding; 0.05 in half precision."""


@dataclass(frozen=True, eq=False)
class Norm:
    """y = scale ∘ c(x) / √(mean c(x)² + eps) + bias, with c the centring of a layer norm or nothing."""

    centred: bool
    eps: float
    scale: Tensor | None
    bias: Tensor | None

    def reciprocal(self, x: Tensor) -> Tensor:
        """Return 1/rms or 1/std of every row: (..., 1), in float32 at least."""
        return (self._centre(x).square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def frozen(self, x: Tensor, reciprocal: Tensor) -> Tensor:
        """Return y with another's reciprocal, (..., 1)."""
        y = self._centre(x) * reciprocal
        y = y if self.scale is None else y * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def maps(self, x: Tensor) -> list[Map]:
        """Return the frozen norm at rows (N, d) as primitive maps."""
        maps: list[Map] = [Center()] if self.centred else []
        maps.append(RowScale(self.reciprocal(x)[:, 0]))
        maps += [] if self.scale is None else [ColumnScale(self.scale)]
        return maps + ([] if self.bias is None else [Bias(self.bias)])

    def _centre(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Output:
    """The output of a linear module, or one of its halves."""

    path: str
    half: int | None = None

    def of(self, out: Tensor) -> Tensor:
        """Cut the half out."""
        return out if self.half is None else out.chunk(2, dim=-1)[self.half]


@dataclass(frozen=True)
class MLP:
    """act(z), or act(z) ∘ u where ``u`` is there, enters the module ``consumer``; paths in the model."""

    activation: str
    z: Output
    u: Output | None
    consumer: str


class Trace:
    """Norms, MLPs and branches of a model, read while a prompt runs through it; one block's values at a time.

    Attributes
    ----------
    norms, mlps : dict
        By path.
    final : list of Norm
        Those behind the last block.
    branches : (str, str) or None
        Modules in a block whose outputs are its attention and its MLP branch, where that is so in every block.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self.norms: dict[str, Norm] = {}
        self.mlps: dict[str, MLP] = {}
        self.final: list[Norm] = []
        self.branches: tuple[str, str] | None = None
        self._model, self._structure = model, structure
        self._calls: dict[str, tuple[Tensor, Tensor]] = {}
        self._found: set[tuple[str, str] | None] = set()

    def during(self, run: Callable[[], Any]) -> None:
        """Read the pass that ``run`` makes.

        Raises
        ------
        UnsupportedModelError
            If a norm or an MLP does not compute what one computes.
        """
        s, inside = self._structure, self._model.get_submodule
        blocks = [f"{s.path}.{name}" for name, _ in inside(s.path).named_children()]
        in_mlps = [f"{mlp}.{name}" for mlp in s.mlps for name, _ in inside(mlp).named_children()]
        with ExitStack() as stack:
            for path in dict.fromkeys((*s.norms, *s.attentions, *s.mlps, *in_mlps, *blocks)):
                stack.enter_context(inside(path).register_forward_hook(self._keep(path), with_kwargs=True))
            for path in blocks:
                stack.enter_context(inside(path).register_forward_hook(self._on_leaving(path)))
            stack.enter_context(inside(s.decoder).register_forward_hook(self._on_leaving(None)))
            run()
        if len(self._found) == 1:
            self.branches = self._found.pop()

    def _keep(self, path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            x, y = entering(args, kwargs), leaving(out)
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                self._calls[path] = x.clone(), y.clone()

        return hook

    def _on_leaving(self, block: str | None) -> Callable[..., None]:
        """Return a hook that reads what was called since the last block: of a block, or (None) behind all."""

        def hook(*_: Any) -> None:
            s, calls, inside = self._structure, self._calls, self._model.get_submodule
            norms = {path: read_norm(inside(path), *calls[path], path) for path in s.norms if path in calls}
            mlps = {path: read_mlp(inside(path), path, calls) for path in s.mlps if path in calls}
            self.norms |= norms
            self.mlps |= mlps
            if block is None:
                self.final += norms.values()
            else:
                attentions = [path for path in s.attentions if path in calls]
                self._found.add(read_branches(block, attentions, mlps, norms, calls))
            calls.clear()

        return hook


def read_norm(module: Any, x: Tensor, y: Tensor, path: str) -> Norm:
    """Return the norm that maps x to y, both (..., d).

    It is also tested at a second input: at rows whose mean is zero, a layer norm and an RMS norm agree.

    Raises
    ------
    UnsupportedModelError
        If no norm did.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = tensor_of(module, "weight"), tensor_of(module, "bias")
    w = None if weight is None else weight.to(wide)
    b = None if bias is None else bias.to(wide)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(x) + 1
    elsewhere = x + noise * x.double().square().mean().sqrt().to(x)
    rows, values = torch.stack([x, elsewhere]), torch.stack([y, module.forward(elsewhere)])
    scales = (None,) if w is None else (w, 1 + w)
    forms = product((False, True), zip(scales, _eps(module, x, scales, b), strict=True))
    norms = [Norm(centred, eps, scale, b) for centred, (scale, eps) in forms]
    # The nearest of them: in half precision a large w is about 1 + w.
    apart, norm = min(((_apart(n.frozen(rows, n.reciprocal(rows)), values), n) for n in norms), key=itemgetter(0))
    if not apart <= _bar(y):
        raise UnsupportedModelError(f"{path} ({type(module).__name__}) does not compute an RMS norm or a layer norm")
    return norm


def _eps(module: Any, x: Tensor, scales: Sequence[Tensor | None], bias: Tensor | None) -> list[float]:
    """Return the epsilon of a norm with each of the scales that it may have.

    Where the norm keeps none, a row near zero, of mean zero, shows it: ‖y − bias‖ = ‖scale ∘ x‖ / √(mean x² + eps).
    """
    declared = declared_eps(module)
    if declared is not None:
        return [declared] * len(scales)
    small = torch.zeros_like(x[..., :1, :]).to(torch.promote_types(x.dtype, torch.float32))
    small[..., 0:-1:2], small[..., 1::2] = 1e-6, -1e-6
    y = module.forward(small)
    size = (y if bias is None else y - bias).double().norm().clamp_min(1e-300)
    mean = small.double().square().mean(-1).max()
    scaled = [(small if scale is None else scale * small).double().norm() for scale in scales]
    return [float(((whole / size).square() - mean).clamp_min(0)) for whole in scaled]


def read_mlp(owner: nn.Module, path: str, calls: Calls) -> MLP:
    """Return how an MLP multiplies, from the input and output of each of its modules by path.

    Raises
    ------
    UnsupportedModelError
        If the activation's output is neither an input nor a factor of one.
    """
    names = {f"{path}.{name}": child for name, child in owner.named_children() if f"{path}.{name}" in calls}
    activation = next((place for place, child in names.items() if is_activation(child)), None)
    if activation is not None:
        z, a = calls[activation]
        outputs = [Output(place, half) for place in names if place != activation for half in (None, 0, 1)]
        source = next((o for o in outputs if same(o.of(calls[o.path][1]), z)), None)
        for consumer in names:
            x = calls[consumer][0]
            if source is None or consumer == activation:
                continue
            if same(a, x):
                return MLP(activation, source, None, consumer)
            for other in outputs:
                u = other.of(calls[other.path][1])
                if other != source and u.shape == a.shape and same(a * u, x):
                    return MLP(activation, source, other, consumer)
    raise UnsupportedModelError(
        f"{path} ({type(owner).__name__}) multiplies its activation by something other than a linear module's output"
    )


def read_branches(
    block: str, attentions: Sequence[str], mlps: Mapping[str, MLP], norms: Iterable[str], calls: Calls
) -> tuple[str, str] | None:
    """Return the modules in a block whose outputs it adds to the stream: attention and MLP, or norms after them.

    None where the stream leaves as something else than what entered plus those two.
    """
    if len(attentions) != 1 or len(mlps) != 1:
        return None
    (owner, mlp), (before, after) = *mlps.items(), calls[block]

    def ends(branch: str) -> list[str]:
        return [branch, *(norm for norm in norms if same(calls[norm][0], calls[branch][1]))]

    def added(path: str) -> Tensor:
        value = calls[path][1]
        return value.reshape(before.shape) if value.numel() == before.numel() else torch.full_like(before, math.nan)

    best, found = math.inf, None
    for first, second in product(ends(attentions[0]), ends(mlp.consumer if owner == block else owner)):
        branches = added(first), added(second)
        error = (after - (before + branches[0] + branches[1])).double().norm()
        # A branch may be small beside the stream, and rounding goes with the stream.
        rounding = 8 * torch.finfo(after.dtype).eps * after.double().norm()
        allowed = rounding + _bar(after) * sum(branch.double().norm() for branch in branches)
        if error <= min(allowed, best):
            best, found = float(error), (first.removeprefix(f"{block}."), second.removeprefix(f"{block}."))
    return found


def same(found: Tensor, expected: Tensor) -> bool:
    """Tell whether two values are one but for rounding."""
    return found.shape == expected.shape and _apart(found, expected) <= _bar(expected)


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))


def _bar(value: Tensor) -> float:
    return _BARS.get(value.dtype, 0.05)

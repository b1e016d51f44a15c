"""Frozen factors of an undeclared decoder, pinned in its own modules: the copy then runs as an affine map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.activations import ratio
from detjac_lanczos.frozen.attention import pin_attention
from detjac_lanczos.frozen.calls import entering
from detjac_lanczos.frozen.structure import Structure
from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.frozen.words.product import GATED, factors
from detjac_lanczos.operators.trace import MLP, Norm, Trace, same

Factors = Mapping[str, Tensor]


class Pins:
    """Factors of every prompt by the module that uses them: recorded in one pass, given back in every later one.

    A module that a pass calls several times gets its factors back in the order of the calls.
    """

    def __init__(self) -> None:
        self.recording = False
        self._prompt = 0
        self._values: dict[tuple[int, str], list[Factors]] = {}
        self._turns: dict[str, int] = {}

    def begin(self, prompt: int, *, recording: bool) -> None:
        """Begin a pass over a prompt."""
        self.recording, self._prompt = recording, prompt
        self._turns.clear()

    def __call__(self, path: str, compute: Callable[[], Factors]) -> Factors:
        """Return the factors of the call that a module is in; they are computed while recording."""
        values = self._values.setdefault((self._prompt, path), [])
        if self.recording:
            values.append(compute())
            return values[-1]
        turn = self._turns.get(path, 0)
        self._turns[path] = turn + 1
        return values[turn]

    def named(self) -> dict[str, Tensor]:
        """Return all factors: "model.layers.3.input_layernorm.rstd.0" is that of prompt 0."""
        named: dict[str, Tensor] = {}
        for (prompt, path), values in self._values.items():
            for call, found in enumerate(values):
                again = f".call{call}" if call else ""
                named |= {f"{path}.{name}{again}.{prompt}": value for name, value in found.items()}
        return named


def pin(model: Any, structure: Structure, trace: Trace, freeze: Freeze, pins: Pins) -> None:
    """Set hooks on the copy by which its norms, MLPs and attention take their factors from ``pins``."""
    for path, norm in trace.norms.items():
        _pin_norm(model.get_submodule(path), path, norm, pins)
    for path, mlp in trace.mlps.items():
        _pin_mlp(model, path, mlp, freeze, pins)
    for path in structure.attentions:
        _pin_weights(model.get_submodule(path), path, pins)


def _pin_norm(module: nn.Module, path: str, norm: Norm, pins: Pins) -> None:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        x = entering(args, kwargs)
        factors = pins(path, lambda: {"rstd": norm.reciprocal(x)})
        return out if pins.recording else norm.frozen(x, _per_copy(factors["rstd"], x))

    module.register_forward_hook(hook, with_kwargs=True)


def _pin_weights(module: nn.Module, path: str, pins: Pins) -> None:
    pin_attention(module, lambda compute: pins(path, lambda: {"mixing": compute()})["mixing"])


def _pin_mlp(model: Any, path: str, mlp: MLP, freeze: Freeze, pins: Pins) -> None:
    """Replace what enters the consumer by a linear function of z and u; the activation's own output is not used."""
    outputs: dict[str, Tensor] = {}
    activation = model.get_submodule(mlp.activation)

    def keep(place: str) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            outputs[place] = out

        model.get_submodule(place).register_forward_hook(hook)

    for place in {half.path for half in (mlp.z, mlp.u) if half is not None}:
        keep(place)

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = mlp.z.of(outputs[mlp.z.path])
        u = z if mlp.u is None else mlp.u.of(outputs[mlp.u.path])
        factors = pins(path, lambda: _factors(activation, z, None if mlp.u is None else u, freeze))
        linear = {"activation": u, "factor": z, "ratio": z}
        terms = [_per_copy(value, z) * linear[name] for name, value in factors.items()]
        product = sum(terms[1:], terms[0]).to(z.dtype)
        outputs.clear()
        if not pins.recording:
            return (product, *args[1:])
        if not same(product, args[0]):
            raise UnsupportedModelError(f"{path} is not the product of an activation and linear modules in this prompt")
        return args

    model.get_submodule(mlp.consumer).register_forward_pre_hook(enter)


def _factors(activation: nn.Module, z: Tensor, u: Tensor | None, freeze: Freeze) -> Factors:
    found = {"ratio": ratio(activation, z)} if u is None else factors(GATED, activation, z, u, freeze)
    return {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in found.items()}


def _per_copy(factor: Tensor, x: Tensor) -> Tensor:
    """Repeat a factor of one copy of the prompt where the copies in x share their axis with the positions."""
    if factor.shape[0] in (1, x.shape[0]):
        return factor
    return factor.repeat(x.shape[0] // factor.shape[0], *[1] * (factor.ndim - 1))

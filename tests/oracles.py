"""Two oracles for a detached network, which share no code with the library.

Both run the model's own transformers modules. The frozen factors pass through a *freezer*, which the test puts between
them and the rest: `Detach` cuts their gradient (oracle A: J by reverse mode), `Pin` records their values at x and
returns them again at x + δ (oracle B: the map is then exactly affine).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import tests.oracles_moe  # noqa: F401  enters its families in the table of structures
from tests.oracle_structures import Freezer, blocks_of, decoder_of, frozen_activation, structure_of


class Detach:
    """Oracle A's freezer: a constant to autograd."""

    def __call__(self, value: Tensor) -> Tensor:
        return value.detach()


class Pin:
    """Oracle B's freezer: values recorded in a first pass, in order, come back in every later one."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.turn: int | None = None

    def rewind(self) -> None:
        self.turn = 0

    def __call__(self, value: Tensor) -> Tensor:
        if self.turn is None:
            self.values.append(value.clone())
            return value
        pinned = self.values[self.turn]
        assert pinned.shape == value.shape
        self.turn += 1
        return pinned


class Lifted(TorchFunctionMode):
    """In a float64 model, let nothing round to float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.double = dtype is torch.float64

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.double:
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if func is Tensor.float:
                func = Tensor.double
        return self.call(func, args, kwargs)

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


class Frozen(Lifted):
    """Send 1/rms, 1/std, attention weights and tanh(z)/z of a softcap through the freezer."""

    def __init__(self, freezer: Freezer, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.freezer = freezer

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is F.layer_norm:
            return self.layer_norm(*args, **kwargs)
        if func is F.rms_norm:
            return self.rms_norm(*args, **kwargs)
        if func in (torch.tanh, Tensor.tanh):
            return frozen_activation(func, self.freezer, *args)
        out = func(*args, **kwargs)
        frozen = (torch.rsqrt, Tensor.rsqrt, torch.softmax, Tensor.softmax, F.softmax)
        to_rms = func in (torch.pow, Tensor.pow) and args[1] == -0.5
        return self.freezer(out) if func in frozen or to_rms else out

    def rms_norm(self, x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        least = torch.finfo(x.dtype).eps if eps is None else eps
        normal = x * self.freezer(torch.rsqrt(x.square().mean(-1, keepdim=True) + least))
        return normal if weight is None else normal * weight

    def layer_norm(
        self, x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normal = centred * self.freezer(torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps))
        scaled = normal if weight is None else normal * weight
        return scaled if bias is None else scaled + bias


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Let the model's own eager attention run for a while, with its softmax in sight."""
    configs = {id(config): config for config in (model.config, decoder_of(model).config)}.values()
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


@contextmanager
def frozen_modules(model: Any, freeze: str, freezer: Freezer) -> Iterator[None]:
    """Freeze the model's own modules for a while: eager attention, MLPs with a frozen factor."""
    freeze_mlps = structure_of(model).freeze_mlps
    with eager_attention(model), freeze_mlps(model, freeze, freezer), Frozen(freezer, model.dtype):
        yield


def run(
    model: Any, embeddings: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
) -> dict[str, Tensor]:
    """One pass on (n, d) embeddings; every stream by name, (1, n, width), still in the graph.

    ``attention_mask`` and ``position_ids`` are (1, n), as transformers takes them.
    """
    inputs = embeddings[None]
    streams: dict[str, Tensor] = {"source.embeddings": inputs}
    handles = []

    def on_input(module: nn.Module, name: str) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            streams[name] = args[0] if args else kwargs["hidden_states"]

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def on_output(module: nn.Module, name: str, scale: float = 1.0) -> None:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            value = out if isinstance(out, Tensor) else out[0]
            streams[name] = scale * value.reshape(1, len(embeddings), -1)

        handles.append(module.register_forward_hook(hook))

    structure = structure_of(model)
    for index, block in enumerate(blocks_of(model)):
        on_input(block, f"source.{index}")
        on_output(block, f"layer.{index}")
        for role, branch in (("attention", structure.attention), ("mlp", structure.mlp)):
            on_output(block.get_submodule(branch.path), f"{role}.{index}", branch.scale(block))
    on_output(blocks_of(model)[-1], "residual")
    on_output(decoder_of(model), "output")
    mask = torch.ones(1, len(embeddings), dtype=torch.long) if attention_mask is None else attention_mask
    try:
        out = model(inputs_embeds=inputs, attention_mask=mask, position_ids=position_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    streams["logits"] = out.logits
    return streams


def embeddings_of(model: Any, ids: list[int]) -> Tensor:
    """Return what the embedding layer gives: (n, d)."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor([ids]))[0]


class OracleA:
    """Reverse mode through the model with detached factors."""

    def __init__(self, model: Any, embeddings: Tensor, freeze: str = "gate", **inputs: Tensor) -> None:
        with frozen_modules(model, freeze, Detach()), torch.enable_grad():
            self.streams = run(model, embeddings.clone().requires_grad_(), **inputs)

    def jacobian(self, source: int | str, target: str, position: int, cotangents: Tensor | None = None) -> Tensor:
        """(d_out, n, d): the derivative of ``target`` at a position by every row entering block ``source``.

        ``source`` is a block, or "embeddings": what the embedding layer gives.
        """
        return self.jacobians([source], target, position, cotangents)[0]

    def jacobians(
        self, sources: Sequence[int | str], target: str, position: int, cotangents: Tensor | None = None
    ) -> list[Tensor]:
        """One Jacobian for each source, by the same reverse passes."""
        y, xs = self.streams[target][0, position], [self.streams[f"source.{source}"] for source in sources]
        cotangents = torch.eye(len(y), dtype=y.dtype) if cotangents is None else cotangents
        parts = [
            torch.autograd.grad(y, xs, part, retain_graph=True, is_grads_batched=True) for part in cotangents.split(96)
        ]
        return [torch.cat(by_source)[:, 0] for by_source in zip(*parts, strict=True)]

    def products(self, source: int | str, targets: Sequence[str], delta: Tensor) -> dict[str, Tensor]:
        """(n, d_out) by target: J δ at every position, for δ (n, d) at every row entering block ``source``."""
        return derivatives(self.streams[f"source.{source}"], {name: self.streams[name] for name in targets}, delta)


def derivatives(x: Tensor, ys: dict[str, Tensor], delta: Tensor) -> dict[str, Tensor]:
    """J δ of every y in two reverse passes: (u, …) ↦ Jᵀ u + … is linear, and its own transpose is (J, …)."""
    us = [torch.zeros_like(y, requires_grad=True) for y in ys.values()]
    (pulled,) = torch.autograd.grad(list(ys.values()), x, us, create_graph=True)
    return {name: moved[0] for name, moved in zip(ys, torch.autograd.grad(pulled, us, delta[None]), strict=True)}


class OracleB:
    """The model run again elsewhere with every frozen factor pinned to its value at x."""

    def __init__(self, model: Any, embeddings: Tensor, freeze: str = "gate", **inputs: Tensor) -> None:
        self.model, self.embeddings, self.freeze, self.inputs, self.pin = model, embeddings, freeze, inputs, Pin()
        self.at_x = self._streams(embeddings)

    def change(self, delta: Tensor) -> dict[str, Tensor]:
        """f(x + δ) − f(x) of every stream, for δ of shape (n, d)."""
        self.pin.rewind()
        moved = self._streams(self.embeddings + delta)
        return {name: moved[name] - self.at_x[name] for name in moved}

    def _streams(self, embeddings: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), frozen_modules(self.model, self.freeze, self.pin):
            return {name: value[0].clone() for name, value in run(self.model, embeddings, **self.inputs).items()}


def errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest relative error by Frobenius norm and by entry."""
    difference = (found - expected).double()
    return (
        float(difference.norm() / expected.double().norm()),
        float(difference.abs().max() / expected.double().abs().max()),
    )

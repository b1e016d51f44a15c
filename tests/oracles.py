"""Two oracles for a detached network, which share no code with the library.

Both run the model's own transformers modules. The frozen factors pass through a *freezer*, which the test puts between
them and the rest: `Detach` cuts their gradient (oracle A: J by reverse mode), `Pin` records their values at x and
returns them again at x + δ (oracle B: the map is then exactly affine).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


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


class Frozen(TorchFunctionMode):
    """Send 1/rms and attention weights through the freezer; in float64, let nothing round to float32."""

    def __init__(self, freezer: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.freezer, self.double = freezer, dtype is torch.float64

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self.double:
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if func is Tensor.float:
                func = Tensor.double
        out = func(*args, **kwargs)
        return self.freezer(out) if func in (torch.rsqrt, torch.softmax, F.softmax) else out


def gated_product(act: nn.Module, freeze: str, freezer: Callable[[Tensor], Tensor], z: Tensor, u: Tensor) -> Tensor:
    """act(z) ∘ u with one factor frozen: act(z), or u and act(z)/z, or the mean of both."""
    nonzero = torch.where(z == 0, torch.ones_like(z), z)
    ratio = freezer(torch.where(z == 0, torch.full_like(z, 0.5), act(nonzero) / nonzero))
    by_gate, by_up = freezer(act(z)) * u, ratio * z * freezer(u)
    return {"gate": by_gate, "up": by_up, "half": 0.5 * by_gate + 0.5 * by_up}[freeze]


@contextmanager
def frozen_modules(model: Any, freeze: str, freezer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Freeze the model's own modules for a while: eager attention, MLPs with a frozen factor."""
    implementation = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    mlps = [block.mlp for block in model.model.layers]

    def forward_of(mlp: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: mlp.down_proj(gated_product(mlp.act_fn, freeze, freezer, mlp.gate_proj(x), mlp.up_proj(x)))

    for mlp in mlps:
        mlp.forward = forward_of(mlp)
    try:
        with Frozen(freezer, model.dtype):
            yield
    finally:
        model.config._attn_implementation = implementation
        for mlp in mlps:
            del mlp.forward


def branch_ends(block: Any) -> dict[str, Any]:
    """Return the modules whose outputs are a block's branches."""
    if hasattr(block, "post_feedforward_layernorm"):
        return {"attention": block.post_attention_layernorm, "mlp": block.post_feedforward_layernorm}
    return {"attention": block.self_attn.o_proj, "mlp": block.mlp.down_proj}


def run(model: Any, embeddings: Tensor) -> dict[str, Tensor]:
    """One pass on (n, d) embeddings; every stream by name, (1, n, width), still in the graph."""
    streams: dict[str, Tensor] = {}
    handles = []

    def on_input(module: nn.Module, name: str) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            streams[name] = args[0] if args else kwargs["hidden_states"]

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def on_output(module: nn.Module, name: str) -> None:
        def hook(_: nn.Module, args: Any, out: Tensor) -> None:
            streams[name] = out

        handles.append(module.register_forward_hook(hook))

    blocks = model.model.layers
    for index, block in enumerate(blocks):
        on_input(block, f"source.{index}")
        if index:
            on_input(block, f"layer.{index - 1}")
        for role, module in branch_ends(block).items():
            on_output(module, f"{role}.{index}")
    on_input(model.model.norm, "residual")
    on_input(model.model.norm, f"layer.{len(blocks) - 1}")
    on_output(model.model.norm, "output")
    mask = torch.ones(1, len(embeddings), dtype=torch.long)
    try:
        out = model(inputs_embeds=embeddings[None], attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    streams["logits"] = out.logits
    return streams


def embeddings_of(model: Any, ids: list[int]) -> Tensor:
    """Return what enters the first block: (n, d)."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor([ids]))[0]


class OracleA:
    """Reverse mode through the model with detached factors."""

    def __init__(self, model: Any, embeddings: Tensor, freeze: str = "gate") -> None:
        with frozen_modules(model, freeze, Detach()), torch.enable_grad():
            self.streams = run(model, embeddings.clone().requires_grad_())

    def jacobian(self, source: int, target: str, position: int, cotangents: Tensor | None = None) -> Tensor:
        """(d_out, n, d): the derivative of ``target`` at a position by every row entering block ``source``."""
        y = self.streams[target][0, position]
        cotangents = torch.eye(len(y), dtype=y.dtype) if cotangents is None else cotangents
        parts = [
            torch.autograd.grad(y, self.streams[f"source.{source}"], part, retain_graph=True, is_grads_batched=True)[0]
            for part in cotangents.split(96)
        ]
        return torch.cat(parts)[:, 0]


class OracleB:
    """The model run again elsewhere with every frozen factor pinned to its value at x."""

    def __init__(self, model: Any, embeddings: Tensor, freeze: str = "gate") -> None:
        self.model, self.embeddings, self.freeze, self.pin = model, embeddings, freeze, Pin()
        self.at_x = self._streams(embeddings)

    def change(self, delta: Tensor) -> dict[str, Tensor]:
        """f(x + δ) − f(x) of every stream, for δ of shape (n, d)."""
        self.pin.rewind()
        moved = self._streams(self.embeddings + delta)
        return {name: moved[name] - self.at_x[name] for name in moved}

    def _streams(self, embeddings: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), frozen_modules(self.model, self.freeze, self.pin):
            return {name: value[0].clone() for name, value in run(self.model, embeddings).items()}


def errors(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest relative error by Frobenius norm and by entry."""
    difference = (found - expected).double()
    return (
        float(difference.norm() / expected.double().norm()),
        float(difference.abs().max() / expected.double().abs().max()),
    )

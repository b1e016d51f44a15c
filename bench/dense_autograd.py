"""The paper's method: dense Jacobians by vectorised reverse-mode autograd through the detached transformers modules."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _DetachedAct(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, z: Tensor) -> Tensor:
        return self.act(z).detach()


def _detached_norm(norm: nn.Module, plus_one: bool) -> Callable[[Tensor], Tensor]:
    eps = norm.eps if plus_one else norm.variance_epsilon

    def forward(x: Tensor) -> Tensor:
        r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps).detach()
        weight = norm.weight + 1 if plus_one else norm.weight
        return x * r * weight

    return forward


def _detached_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1).detach()
    return (weights @ value).transpose(1, 2).contiguous(), weights


def detached_model(model: Any) -> Any:
    """Return a copy of a Llama or Gemma 3 model, sharing its parameters, with detach calls where it is frozen."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register("bench_detached", _detached_attention)
    AttentionMaskInterface.register("bench_detached", eager_mask)
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    twin.config._attn_implementation = "bench_detached"
    for name, module in list(twin.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _detached_norm(module, "Gemma" in type(module).__name__)
        elif name.endswith("mlp"):
            module.act_fn = _DetachedAct(module.act_fn)
    return twin


def output_of(twin: Any, embeds: Tensor) -> Tensor:
    """Return the output after the final norm at the last position: (1, n, d) to (d,)."""
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    output: Tensor = twin.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state[0, -1]
    return output


def embed(model: Any, ids: list[int]) -> Tensor:
    """Return the input embeddings: (1, n, d)."""
    with torch.no_grad():
        embeds: Tensor = model.get_input_embeddings()(torch.tensor([ids]))
    return embeds


def dense_jacobians(twin: Any, embeds: Tensor, chunk: int, columns: int | None = None) -> Tensor:
    """Return J of every token by reverse mode, ``chunk`` cotangents at once: (n, d_out, d_in).

    ``columns`` limits the number of cotangents (the rows of J), for measurements of memory.
    """
    x = embeds.clone().requires_grad_(True)
    y = output_of(twin, x)
    cotangents = torch.eye(len(y), dtype=y.dtype)[:columns]
    rows = [
        torch.autograd.grad(y, x, part, is_grads_batched=True, retain_graph=True)[0][:, 0]
        for part in cotangents.split(chunk)
    ]
    return torch.cat(rows).transpose(0, 1)

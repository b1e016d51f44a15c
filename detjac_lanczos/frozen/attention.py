"""The attention function of the structural copy: eager arithmetic, shown to an observer.

Queries are taken a tile at a time, so that the weights of a long prompt need not exist as a whole. transformers looks
attention and mask functions up by name in two registries. One entry in each, added once, is all that is ever written
there; the name is only ever set on the configuration of a structural copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError

NAME = "detjac_observed"
_OBSERVER = "_detjac_observer"
_PIN = "_detjac_pin"
_AHEAD = "_detjac_ahead"
_lock = threading.Lock()

TILE_CELLS = 1 << 20
"""Weights (batch × heads × queries × keys) that exist at once, unless 32 queries have more of them."""


@dataclass(frozen=True, eq=False)
class Attended:
    """What one call attends with.

    ``query``: (heads, n, head_dim); ``key``: (kv_heads, n, head_dim); ``mask``: additive, broadcast to (heads, n, n).
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None


Tiles = Callable[[range, range, Tensor, Tensor], None]
"""What is shown the tiles of a call: queries, keys, scores (heads, queries, keys, and one more where there is a sink),
and weights (heads, queries, keys); keys that a tile leaves out have no weight."""

Observer = Callable[[Attended], Tiles]
"""What is shown each call, before its tiles."""


def register() -> None:
    """Add the two registry entries, once."""
    with _lock:
        _register_once()


@cache
def _register_once() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, observed_attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def observe_attention(module: nn.Module, observer: Observer) -> None:
    """Have an attention module of the copy show what it does on a batch of one to ``observer``."""
    module.__dict__[_OBSERVER] = observer


def refuse_to_look_ahead(model: nn.Module) -> None:
    """Have attention of a copy, before its configuration names this function, refuse calls where it is not causal.

    What says ``is_causal = False`` sees later positions in sdpa and flash attention, which obey that where no mask is
    given; the mask of this pass may be causal all the same. The eager function knows masks alone.
    """
    for path, module in model.named_modules():
        own = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if getattr(module, "is_causal", None) is False and own not in (None, "eager", NAME):
            module.__dict__[_AHEAD] = path


def not_causal(path: str) -> UnsupportedModelError:
    """Return the refusal of an attention module."""
    return UnsupportedModelError(f"{path} attends to later positions; only causal models are served")


def pin_attention(module: nn.Module, pin: Callable[[Callable[[], Tensor]], Tensor]) -> None:
    """Have an attention module of the copy take its weights from ``pin``, which is given a function that computes them.

    Weights, (batch or 1, heads, n, n), that do not come from that function make the module linear in its values.
    """
    module.__dict__[_PIN] = pin


def observed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention in transformers' eager order of rounding.

    Parameters
    ----------
    module : torch.nn.Module
        The attention module, with its observer or its pin, if any.
    query : Tensor, shape (batch, heads, n, head_dim)
    key, value : Tensor, shape (batch, kv_heads, n, head_dim)
    attention_mask : Tensor, shape (batch, 1, n, n), additive
    scaling, softcap : float, optional
    s_aux : Tensor, shape (heads,), optional
        Sinks: one more score for every query of a head, whose weight goes nowhere.

    Returns
    -------
    output : Tensor, shape (batch, n, heads, head_dim)
    weights : None

    Raises
    ------
    UnsupportedModelError
        If the module's own function is not causal, see `refuse_to_look_ahead`.
    """
    if _AHEAD in module.__dict__:
        raise not_causal(module.__dict__[_AHEAD])
    attended = Attended(
        query[0], key[0], attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap
    )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def scores(queries: range, keys: range) -> Tensor:
        return _scores(query, key, attended, s_aux, queries, keys)

    def weights(scores: Tensor, keys: range) -> Tensor:
        if s_aux is not None:
            scores = scores - scores.amax(-1, keepdim=True)  # a rounding of its own, where there are sinks
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)[..., : len(keys)]

    pin, observer = module.__dict__.get(_PIN), module.__dict__.get(_OBSERVER)
    if pin is not None:
        queries, keys = range(query.shape[2]), range(key.shape[2])
        output = torch.matmul(pin(lambda: weights(scores(queries, keys), keys)), value)
        return output.transpose(1, 2).contiguous(), None
    show = None if observer is None else observer(attended)
    parts = []
    for queries, keys in _tiles(query, key, attention_mask):
        seen = scores(queries, keys)
        shares = weights(seen, keys)
        if show is not None:
            show(queries, keys, seen[0], shares[0])
        parts.append(torch.matmul(shares, value[:, :, keys.start : keys.stop]))
    output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return output.transpose(1, 2).contiguous(), None


def _scores(
    query: Tensor, key: Tensor, attended: Attended, sinks: Tensor | None, queries: range, keys: range
) -> Tensor:
    rows, columns = slice(queries.start, queries.stop), slice(keys.start, keys.stop)
    scores = torch.matmul(query[:, :, rows], key[:, :, columns].transpose(2, 3)) * attended.scaling
    if attended.softcap is not None:
        scores = torch.tanh(scores / attended.softcap) * attended.softcap
    if attended.mask is not None:
        scores = scores + attended.mask[..., rows, columns]
    if sinks is not None:
        extra = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, extra], dim=-1)
    return scores


def _tiles(query: Tensor, key: Tensor, mask: Tensor | None) -> Iterator[tuple[range, range]]:
    """Yield all queries, a tile at a time, and the keys that some of them see."""
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    height = max(32, TILE_CELLS // (batch * heads * keys))
    if height >= queries:
        yield range(queries), range(keys)
        return
    for begin in range(0, queries, height):
        rows = range(begin, min(begin + height, queries))
        seen = range(keys)
        if mask is not None:
            visible = mask[..., rows.start : rows.stop, :keys] > hidden(mask)
            columns = visible.flatten(0, -2).any(0).nonzero()[:, 0]
            seen = range(int(columns[0]), int(columns[-1]) + 1)
        yield rows, seen


def hidden(mask: Tensor) -> float:
    """Return a number below which an entry of an additive mask hides its key for good."""
    return torch.finfo(mask.dtype).min / 2


def first_visible(mask: Tensor | None, n: int) -> Tensor | None:
    """Return the first key that each of n queries sees, (n,), where query i sees all from there to its own.

    None where the mask says anything else: other gaps, a bias, a difference between heads.
    """
    if mask is None or mask.shape[:2] != (1, 1) or mask.shape[2] != n:
        return torch.zeros(1, dtype=torch.int64, device="cpu") if mask is None and n == 1 else None
    first = torch.empty(n, dtype=torch.int64, device=mask.device)
    at = torch.arange(n, device=mask.device)
    for rows in at.split(max(32, TILE_CELLS // n)):
        part = mask[0, 0, rows, :n]
        visible = part == 0
        start = rows + 1 - visible.sum(1)
        if not (visible == ((at >= start[:, None]) & (at <= rows[:, None]))).all():
            return None
        if not (visible | (part < hidden(mask))).all():
            return None
        first[rows] = start
    return first

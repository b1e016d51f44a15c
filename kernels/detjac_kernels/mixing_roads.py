"""Mixing by the twin or by the device kernel: on a CUDA device the faster one, compared once for each class."""

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor

from detjac_kernels import mixing, rebuilt_mixing
from detjac_kernels.choice import AGREEMENT, ChoiceTable, Road, capturing, place, seconds_on_device, triton_runs
from detjac_kernels.kept_choices import kept_choices
from detjac_kernels.rebuilt_mixing import Rebuilding

TABLE = ChoiceTable(seconds_on_device, ("twin", "kernel"))
choices, replay, forget = TABLE.choices, TABLE.replay, TABLE.forget


def mix(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return ``P V`` for every head: see `detjac_kernels.mixing.mix`."""
    return _stored("mix", probabilities, values)


def mix_transposed(probabilities: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``Pᵀ Y``, summed over the heads of a group: see `detjac_kernels.mixing.mix_transposed`."""
    return _stored("mix_transposed", probabilities, cotangents)


def mix_rebuilt(
    q: Tensor, k: Tensor, lse: Tensor, first: Tensor, values: Tensor, **options: Unpack[Rebuilding]
) -> Tensor:
    """Return ``diag(query_scale) P diag(key_scale) V``: see `detjac_kernels.rebuilt_mixing.mix_rebuilt`."""
    return _rebuilt("mix_rebuilt", (q, k, lse, first, values), options)


def mix_rebuilt_transposed(
    q: Tensor, k: Tensor, lse: Tensor, first: Tensor, cotangents: Tensor, **options: Unpack[Rebuilding]
) -> Tensor:
    """Return ``diag(key_scale) Pᵀ diag(query_scale) Y``: see `detjac_kernels.rebuilt_mixing`."""
    return _rebuilt("mix_rebuilt_transposed", (q, k, lse, first, cotangents), options)


def _stored(name: str, probabilities: Tensor, values: Tensor) -> Tensor:
    plain = getattr(mixing, name)
    if not triton_runs(values) or probabilities.dtype is not values.dtype or values.dtype not in AGREEMENT:
        result: Tensor = plain(probabilities, values)
        return result
    from detjac_kernels.device import mixing as device

    roads = {
        "twin": lambda: plain(probabilities, values),
        "kernel": lambda: getattr(device, name)(probabilities, values),
    }
    key = f"{name} {len(values)} groups, {_sizes(*probabilities.shape[1:], values.shape[-1])}"
    return _run(key, roads, values)


def _rebuilt(name: str, tensors: tuple[Tensor, ...], options: Rebuilding) -> Tensor:
    plain = getattr(rebuilt_mixing, name)
    q, k, lse, _, values = tensors
    if not triton_runs(values) or lse.dtype is not torch.float32 or values.dtype not in AGREEMENT:
        result: Tensor = plain(*tensors, **options)
        return result
    from detjac_kernels.device import mixing as device

    roads = {"twin": lambda: plain(*tensors, **options)}
    if device.fits(q, values):
        roads["kernel"] = lambda: getattr(device, name)(*tensors, **options)
    heads = f"{len(q)}/{len(k)} heads of {q.shape[-1]}"
    cap = "" if options.get("softcap") is None else ", softcap"
    return _run(f"{name} {heads}, {_sizes(q.shape[1], k.shape[1], values.shape[-1])}{cap}", roads, values)


def _sizes(*sizes: int) -> str:
    return "×".join(str(1 << (size - 1).bit_length()) for size in sizes)


def _run(key: str, roads: Mapping[str, Road], values: Tensor) -> Tensor:
    key = f"{place(values)}, {key}"
    kept = kept_choices("mixing", values.device)
    return TABLE.run(key, roads, AGREEMENT[values.dtype], measure=not capturing(values), kept=kept)

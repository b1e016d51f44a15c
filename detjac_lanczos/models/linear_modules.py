"""Weight and bias of a linear module, of an expert, and the table of an embedding, whatever module holds them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from detjac_kernels import product_of_few_rows
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models import bitsandbytes
from detjac_lanczos.models.adapters import active_adapters, is_adapted, running_module
from detjac_lanczos.models.decoded import Decoded
from detjac_lanczos.models.lora import adapted_bias, adapted_weight
from detjac_lanczos.models.mxfp4 import Mxfp4Experts
from detjac_lanczos.models.offloaded import tensor_of
from detjac_lanczos.models.packed_modules import is_packed, packed_weight
from detjac_lanczos.models.streaming import weight_from
from detjac_lanczos.models.weights import AlternatingWeight, DenseWeight, Part, Weight, matrix_weight


def weight_of(module: nn.Module, name: str, part: Part | None = None) -> Weight:
    """Return the weight of a linear module (or ``part`` of its rows), with its LoRA adapters as they are.

    Raises
    ------
    UnsupportedModelError
        If the module, or what adapters hold inside, is neither a dense ``torch.nn.Linear``, nor a ``Conv1D`` of
        transformers, nor packed in a format that is read here.
    """
    module = running_module(module)
    if is_adapted(module):
        layer: Any = module
        return adapted_weight(layer, weight_of(layer.base_layer, name, part), part)
    return weight_from(module, lambda here: _plain_weight(here, name, part))


def is_dense(module: nn.Module) -> bool:
    """Tell whether a module is a ``torch.nn.Linear``, or of a class that leaves it what it computes, and with what."""
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and not hasattr(type(module), "weight")
        and not parametrize.is_parametrized(module)
    )


def _plain_weight(module: nn.Module, name: str, part: Part | None) -> Weight:
    parameter = getattr(module, "weight", None)
    transposed = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    plain = isinstance(parameter, Tensor) and type(parameter) in (nn.Parameter, Tensor)
    if not (transposed or is_dense(module)) or parameter is None or not plain:
        if is_packed(module):
            return packed_weight(module, name, part)
        kind = f"{type(module).__name__} of {type(parameter).__name__}" if is_dense(module) else type(module).__name__
        if parametrize.is_parametrized(module):
            raise UnsupportedModelError(
                f"the weight of {name} is parametrised; make it plain first, by "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
        raise UnsupportedModelError(
            f"{name} is a {kind}, neither dense nor of a packed format that offers dequantize(); give a plain "
            "torch.nn.Linear there, or load a quantised model dequantised"
        )
    matrix = parameter.detach().t() if transposed else parameter.detach()
    return matrix_weight(matrix if part is None else part(matrix))


def expert_weight(experts: Any, name: str, expert: int, *, transposed: bool, rows: slice = slice(None)) -> Weight:
    """Return some rows of the matrix (f, d) of one expert, in place.

    Parameters
    ----------
    experts : torch.nn.Module
    name : str
        Of the tensor that holds the matrices, such as "gate_up_proj".
    expert : int
    transposed : bool
        Whether dense ones are stored as (d, f).
    rows : slice
    """
    if isinstance(experts, Mxfp4Experts):
        return experts.weight(name, expert, rows)
    matrix = getattr(experts, name)[expert].detach()
    matrix = matrix.t() if transposed else matrix
    return AlternatingWeight(matrix, rows.start) if rows.step == 2 else DenseWeight(matrix[rows])


def bias_of(module: nn.Module, part: Part | None = None) -> Tensor | None:
    """Return the bias (f,) of a linear module, or ``part`` of it; None where it has none."""
    bias = _whole_bias(module)
    return bias if bias is None or part is None else part(bias).flatten()


def _whole_bias(module: nn.Module) -> Tensor | None:
    module = running_module(module)
    if is_adapted(module):
        layer: Any = module
        return adapted_bias(layer, _whole_bias(layer.base_layer))
    return tensor_of(module, "bias")


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return output and input width, (f, d), of a linear module, packed or not; its weight is not read."""
    running: Any = running_module(module)
    if is_adapted(running):
        return linear_shape(running.base_layer)
    if type(running).__name__ == "Conv1D":
        return running.nf, running.nx
    return running.out_features, running.in_features


def has_bias(module: nn.Module) -> bool:
    """Tell whether a linear module, adapted or not, has a bias; it is not read."""
    running: Any = running_module(module)
    return has_bias(running.base_layer) if is_adapted(running) else getattr(running, "bias", None) is not None


def multiply_by_decoded_weights(copied: nn.Module, *, four_bits_only: bool = False) -> None:
    """Replace every packed linear module of a structural copy, with its adapters, by one that multiplies by its weight.

    The Jacobian of a packed model is that of its decoded weights, and so must be what is frozen: a packed module's own
    product may round activations (LLM.int8), or be wrong (4-bit weights of bitsandbytes on CPU, for some widths).

    Parameters
    ----------
    copied : torch.nn.Module
    four_bits_only : bool
        Leave all but 4-bit modules of bitsandbytes. Those decode a whole matrix at a time when they run, and what they
        mean to multiply by is the same.
    """
    chosen = (lambda inside: bitsandbytes.kind_of(inside) == "4-bit") if four_bits_only else is_packed
    done: tuple[str, ...] = ()
    for name, module in list(copied.named_modules()):
        inside: Any = running_module(module)
        if not name.startswith(done) and chosen(inside.base_layer if is_adapted(inside) else inside):
            parent, _, child = name.rpartition(".")
            copied.get_submodule(parent)._modules[child] = Decoded(weight_of(module, name), bias_of(module))
            done += (f"{name}.",)


def multiply_fast(copied: nn.Module) -> None:
    """Have plain float32 linear modules of a structural copy take the fastest exact product for the rows of a prompt.

    No gradient passes through.
    """
    for module in copied.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            weight = module._parameters.get("weight")
            if type(weight) is nn.Parameter and weight.dtype is torch.float32:
                vars(module)["forward"] = partial(_linear_of_few_rows, weight, module.bias)


def _linear_of_few_rows(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    if x.ndim == 1 or not x.is_contiguous() or not weight.numel():
        return nn.functional.linear(x, weight, bias)
    return product_of_few_rows(x.reshape(-1, x.shape[-1]), weight, bias).unflatten(0, x.shape[:-1])


def embedding_table(module: nn.Module) -> Tensor:
    """Return the rows (vocabulary, d) that an embedding looks up: its weight in place, or its sum with LoRA adapters.

    An offloaded table is read anew at each call.

    Raises
    ------
    UnsupportedModelError
        If an adapter does more than add to the table.
    """
    running: Any = running_module(module)
    if not is_adapted(running):
        table = tensor_of(running, "weight")
        if table is None:
            raise UnsupportedModelError(f"the embedding is a {type(running).__name__} without a table to decode with")
        return table
    table = embedding_table(running.base_layer)
    for adapter in active_adapters(running):
        if adapter in running.lora_variant:
            raise UnsupportedModelError("the embedding has a DoRA adapter; to decode, merge it with merge_and_unload()")
        table = table + running.get_delta_weight(adapter).detach()
    return table

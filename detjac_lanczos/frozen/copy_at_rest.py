"""A copy of a model that never runs: what maps are made of, with the numbers that the model had when it was copied."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from detjac_lanczos.frozen.structural_copy import HOOK_TABLES, leave_inputs_alone, unwrap_compiled

_SMALL = 1024
"""Numbers that a tensor has fewer of, and is no parameter, if a model keeps its multipliers and scales in it."""


@torch.inference_mode(False)
def copy_at_rest(model: nn.Module) -> Any:
    """Return modules of their own around the tensors of a model: attributes and configurations as they are now.

    So are small buffers, and small tensors that are attributes: multipliers may be written to in place. What else is no
    module, container or configuration is the model's own, whatever its size. Hooks are left out.
    """
    twins = {id(module): type(module).__new__(type(module)) for module in model.modules()}
    known: dict[int, Any] = {}
    for module in model.modules():
        own = vars(twins[id(module)])
        for name, value in vars(module).items():
            if name in HOOK_TABLES:
                own[name] = OrderedDict()
            elif isinstance(value, PreTrainedConfig):
                own[name] = copy.deepcopy(value, known)
            else:
                own[name] = _as_now(value)
        own["_buffers"] = {name: _as_now(value) for name, value in module._buffers.items()}
        own["_modules"] = {name: None if child is None else twins[id(child)] for name, child in module._modules.items()}
    twin = twins[id(model)]
    unwrap_compiled(twin)
    leave_inputs_alone(twin)
    return twin


def _as_now(value: Any) -> Any:
    """Return what stays as it is now whatever is written to a container or a small tensor; all else as it comes."""
    if type(value) in (dict, OrderedDict, list, set):
        return value.copy()
    return value.detach().clone() if type(value) is Tensor and value.numel() < _SMALL else value

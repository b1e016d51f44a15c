"""A copy of a model that never runs: what maps are made of, with the numbers that the model had when it was copied."""

import copy
from collections import OrderedDict
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from detjac_lanczos.frozen.structural_copy import HOOK_TABLES, unwrap_compiled


def copy_at_rest(model: nn.Module) -> Any:
    """Return modules of their own around the tensors of a model: attributes and configurations as they are now.

    What is no module, container or configuration is the model's own, whatever its size. Hooks are left out.
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
                own[name] = value.copy() if type(value) in (dict, OrderedDict, list, set) else value
        own["_modules"] = {name: None if child is None else twins[id(child)] for name, child in module._modules.items()}
    twin = twins[id(model)]
    unwrap_compiled(twin)
    return twin

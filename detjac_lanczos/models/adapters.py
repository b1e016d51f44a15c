"""PEFT adapters on a live model: which module runs, what tells two states apart, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models.dtypes import dtypes_of

_MERGE = "merge it first with model.merge_and_unload()"

_OF_WRAPPERS = {"original_module", "modules_to_save"}


def without_adapters(model: Any) -> Any:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def running_module(module: nn.Module) -> nn.Module:
    """Return the module that runs: of a ``modules_to_save`` wrapper the active adapter's copy, or the original."""
    if not keeps_copies(module):
        return module
    wrapper: Any = module
    if wrapper.disable_adapters or not wrapper.active_adapters:
        return wrapper.original_module
    return wrapper.modules_to_save[wrapper.active_adapters[0]]


def is_adapted(module: nn.Module) -> bool:
    """Tell whether a module is an adapter of PEFT around another one; what a caller wrote may have its names."""
    return isinstance(module._modules.get("base_layer"), nn.Module) and _is_switched(module)


def keeps_copies(module: nn.Module) -> bool:
    """Tell whether a module is a ``modules_to_save`` wrapper of PEFT."""
    return "modules_to_save" in module._modules and _is_switched(module)


def _is_switched(module: nn.Module) -> bool:
    return hasattr(type(module), "active_adapters") and hasattr(type(module), "disable_adapters")


def active_adapters(layer: Any) -> list[str]:
    """Return the adapters that add to a layer's weight as it runs: none where they are merged or switched off."""
    if layer.disable_adapters or layer.merged:
        return []
    known = {*layer.lora_A, *layer.lora_embedding_A}
    return [adapter for adapter in layer.active_adapters if adapter in known]


def adapter_state(model: nn.Module) -> Iterator[str]:
    """Yield what the tensors of a model do not show of its adapters: active, merged or switched off, and scaling."""
    for name, module in model.named_modules():
        if is_adapted(module) or keeps_copies(module):
            layer: Any = module
            scaling = sorted(vars(layer).get("scaling", {}).items())  # no wrapper's: it passes on what it holds
            merged = getattr(layer, "merged_adapters", [])
            yield f"{name} {layer.active_adapters} {merged} {layer.disable_adapters} {scaling}\n"


def require_readable_adapters(model: nn.Module) -> None:
    """Refuse adapters that add more to a linear map than LoRA does, and those a forward pass would change.

    Raises
    ------
    UnsupportedModelError
        Naming the adapter or its layer.
    """
    owner: Any = model
    for adapter, config in (getattr(owner, "peft_config", None) or {}).items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if getattr(config, "is_prompt_learning", False) or kind == "ADAPTION_PROMPT":
            raise UnsupportedModelError(_no_change_of_weights(adapter, kind))
        if kind != "LORA":
            raise UnsupportedModelError(f"adapter {adapter!r} is of type {kind}, only LoRA is read in place; {_MERGE}")
    for name, module in model.named_modules():
        if is_adapted(module):
            _require_readable(name, module)
        if keeps_copies(module) and (also := sorted({*module._modules} - _OF_WRAPPERS)):
            raise UnsupportedModelError(
                f"{name} and, once more, {', '.join(also)} inside it are in modules_to_save, which goes by how names "
                f"end; the inner copy never runs; {_MERGE}"
            )


def _no_change_of_weights(adapter: str, kind: str) -> str:
    """Return why an adapter that learns a prompt is refused: there is nothing to merge it into."""
    mend = (
        "give model.get_base_model(), and inputs_embeds that begin with model.get_prompt(1)"
        if kind in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING")
        else "give the model without it, model.get_base_model()"
    )
    return f"adapter {adapter!r} is of type {kind}, which changes no weights but what the model attends to; {mend}"


def _require_readable(name: str, layer: Any) -> None:
    if layer.merged and layer.disable_adapters:
        raise UnsupportedModelError(
            f"{name}: a forward pass would unmerge its disabled adapter in place; unmerge it or enable adapters first"
        )
    if layer.merged or layer.disable_adapters:
        return
    if not type(layer).__module__.startswith("peft.tuners.lora.") or type(layer).__name__ == "ParamWrapper":
        raise UnsupportedModelError(f"{name} is a {type(layer).__name__} adapter, no LoRA of a module; {_MERGE}")
    adapters = active_adapters(layer)
    variants = {
        adapter: type(layer.lora_variant[adapter]).__name__ for adapter in adapters if adapter in layer.lora_variant
    }
    for adapter, variant in variants.items():
        if not variant.startswith("Dora"):
            raise UnsupportedModelError(f"{name}: adapter {adapter!r} is a {variant}, no plain LoRA; {_MERGE}")
    if variants and len(adapters) > 1:
        raise UnsupportedModelError(f"{name}: DoRA beside other active adapters is not read in place; {_MERGE}")
    if len(dtypes := set(dtypes_of(layer))) > 1 and torch.float64 in dtypes:
        raise UnsupportedModelError(f"{name}: adapter and weight are not both float64; use model.to(torch.float64)")

"""Which weights of a model a format packs, told without packing any: by transformers' own rule for bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from detjac_lanczos.errors import InputError


def packed_parameters(
    model: Any, quantization: str | None, skipped: Sequence[str] | None
) -> dict[int, tuple[int, int]]:
    """Return the shapes (f, d), by the ids of parameters, of what a format packs; routed experts count as one matrix.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        On any device, the meta device too.
    quantization : str or None
        A format of bitsandbytes, or "mxfp4", which packs the experts of gpt-oss.
    skipped : sequence of str or None
        Patterns of names that a checkpoint was packed without (``llm_int8_skip_modules``); None for head and ties.

    Raises
    ------
    InputError
        If the model has nothing that this format packs.
    """
    if quantization is None:
        return {}
    if quantization == "mxfp4":
        found = _experts_of_gpt_oss(model)
    else:
        linear = _linear_modules(model, skipped)
        # A head that is packed and then tied to the embedding is the embedding, in full.
        rest = {id(p) for m in model.modules() if m not in linear for p in m._parameters.values()}
        found = {id(m.weight): shape for m, shape in linear.items() if id(m.weight) not in rest}
    if not found:
        kind = type(model).__name__
        hint = "; nf4, nf4-double, fp4, fp4-double or int8 pack its linear modules" if quantization == "mxfp4" else ""
        raise InputError(f"{kind} has no weights that {quantization} packs{hint}")
    return found


def _experts_of_gpt_oss(model: Any) -> dict[int, tuple[int, int]]:
    if model.config.model_type != "gpt_oss":
        return {}
    return {id(p): (p.shape[0] * p.shape[1], p.shape[2]) for p in model.parameters() if p.ndim == 3}


def _linear_modules(model: Any, skipped: Sequence[str] | None) -> dict[Any, tuple[int, int]]:
    """Return the modules that ``transformers.integrations.replace_with_bnb_linear`` would replace."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    left = None if skipped is None else list(skipped)
    left = HfQuantizer.get_modules_to_not_convert(model, left, model._keep_in_fp32_modules)
    found: dict[Any, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D) or type(module) is nn.Linear:
            f, d = reversed(module.weight.shape) if isinstance(module, Conv1D) else module.weight.shape
            if should_convert_module(name, left):
                found[module] = (f, d)
    return found

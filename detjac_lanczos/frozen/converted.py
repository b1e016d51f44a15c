"""Models in the precision and on the device asked for: loaded there, or, where they are live, copied there."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike

import torch

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.structural_copy import copy_with_tensors, tell_of_hooks
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.conversion import conversions, why_fixed
from detjac_lanczos.models.dtypes import parse_device, parse_dtype
from detjac_lanczos.models.fingerprint import fingerprint_of
from detjac_lanczos.models.loaded import ModelLike
from detjac_lanczos.models.offloaded import execution_devices
from detjac_lanczos.models.quantization import Packing
from detjac_lanczos.models.refreshed import remembered
from detjac_lanczos.models.text_model import configurations_of, text_config_of


@torch.inference_mode(False)
def load_converted(
    model: ModelLike,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: Packing | None = None,
) -> LoadedModel:
    """Return a model in a dtype on a device; a live one stays as it is, and a converted copy of it is returned.

    Parameters
    ----------
    model : LoadedModel, (model, tokenizer), or anything `load_model` takes
    dtype, device
        As in `load_model`. None (or "auto"): as the model is. Where both are those of the model it is returned itself.
    quantization
        As in `load_model`, which refuses it of a live model.

    Raises
    ------
    InputError, ModelError
        As `load_model`, or if a weight is too large for the dtype.
    UnsupportedModelError
        If a live model's weights are packed, offloaded or spread over devices, and not as asked for.
    """
    wanted, place = None if dtype is None else parse_dtype(dtype), parse_device(device)
    if isinstance(model, str | PathLike):
        return load_model(model, dtype=wanted or "auto", device=place, quantization=quantization)
    loaded = load_model(model, quantization=quantization)
    if (wanted is None and place is None) or _is_fixed_as_asked(loaded, wanted, place):
        return loaded
    changed = {
        id(found.tensor): found.converted
        for found in conversions(loaded.model, wanted, place)
        if found.converted is not found.tensor
    }
    if not changed:
        return loaded
    tell_of_hooks(loaded.model)
    twin = copy_with_tensors(loaded.model, changed)
    if wanted is not None:
        for config in (twin.config, text_config_of(twin)):
            config.dtype = wanted
        for config in configurations_of(twin):
            if str(config._attn_implementation).startswith(("flash_", "flex_")):  # made for some dtypes alone
                config._attn_implementation = "sdpa" if without_adapters(twin)._supports_sdpa else "eager"
    return remembered(replace(loaded, model=twin, fingerprint=fingerprint_of(twin, finite_as=loaded.name)))


def _is_fixed_as_asked(loaded: LoadedModel, dtype: torch.dtype | None, device: torch.device | None) -> bool:
    """Tell whether nothing can be converted and nothing has to be; refuse where only the latter is wrong."""
    reason = why_fixed(loaded.model)
    if reason is None:
        return False
    here = device is None or execution_devices(loaded.model) == {torch.empty(0, device=device).device}
    if not here or dtype not in (None, loaded.dtype):
        raise UnsupportedModelError(
            f"the weights of {loaded.name} are {reason}, and such are neither converted nor moved here; load the model "
            "as you want it, and leave dtype and device off"
        )
    return True

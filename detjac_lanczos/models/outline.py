"""A model from its configuration alone: modules on the meta device, and what its weights measure."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detjac_kernels.decoded import scratch_bytes
from detjac_kernels.four_bit import PAIRS_BYTES
from detjac_lanczos._requirements import require_docstrings
from detjac_lanczos.errors import InputError, ModelError, in_one_line
from detjac_lanczos.models.cache import cache_folder_of
from detjac_lanczos.models.catalogue import EMBEDDED, Embedded
from detjac_lanczos.models.dtypes import parse_dtype
from detjac_lanczos.models.hub import options_for_hub
from detjac_lanczos.models.load import path_of
from detjac_lanczos.models.pretrained import auto_class
from detjac_lanczos.models.quantization import Quantization, read_quantization


def outline(model: Any, dtype: str | torch.dtype = "auto") -> tuple[nn.Module, str, Quantization | None]:
    """Return a model without values, its name, and how its configuration says that it is packed.

    Parameters
    ----------
    model : str, path or transformers configuration
        An embedded name (nothing is unpacked), a folder with a ``config.json``, a ``.gguf`` file, or a hub id.
    dtype : str or torch.dtype
        As in `load_model`.

    Raises
    ------
    InputError, ModelError
        If there is no such configuration, or none of a causal language model.
    """
    require_docstrings()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import PreTrainedConfig

    wanted = parse_dtype(dtype)
    if isinstance(model, PreTrainedConfig):
        config, name = model, model.name_or_path or type(model).__name__
    elif isinstance(model, str | os.PathLike):
        name, path = os.fspath(model), path_of(model)
        config = _config(name, path)
        name = path.resolve().name if path.exists() else name
    else:
        raise InputError(f"plan takes a name, a path or a configuration, not {type(model).__name__}")
    config, stored = copy.deepcopy(config), getattr(config, "quantization_config", None)
    packed = _packed(stored, name)
    if stored is not None:
        del config.quantization_config
    default = torch.float32 if name in EMBEDDED or name.endswith(".gguf") else getattr(config, "dtype", None)
    try:
        with torch.device("meta"):
            made = auto_class(config.model_type).from_config(config, dtype=wanted or default or torch.float32)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(
            f"{name} is no causal language model that transformers knows ({in_one_line(error)[:200]})"
        ) from error
    if stored is not None:
        made.config.quantization_config = stored
    return made.eval(), name, packed


def weight_bytes(model: nn.Module, quantization: Quantization | None = None) -> Counter[str]:
    """Return the bytes of a model's weights by precision, tied ones once: {"nf4": …, "bfloat16": …}.

    4 bits come with a scale for 64 weights, of 4 bytes, or of one and 4 bytes more for 256 of these ("-double"); 8 bits
    with 4 bytes a row.

    Raises
    ------
    InputError
        If the model has nothing that this format packs.
    """
    return weight_bytes_of(model, quantization, [model])[0]


def weight_bytes_of(
    model: nn.Module, quantization: Quantization | None, parts: Iterable[nn.Module]
) -> list[Counter[str]]:
    """Return what `weight_bytes` does for some parts of a model each."""
    packed = _packed_parameters(model, quantization)
    found: list[Counter[str]] = []
    for part in parts:
        found.append(Counter())
        for parameter in part.parameters():
            if quantization and id(parameter) in packed:
                found[-1][quantization] += packed_bytes(*packed[id(parameter)], quantization)
            else:
                found[-1][str(parameter.dtype).removeprefix("torch.")] += parameter.nbytes
    return found


def scratch(model: nn.Module, quantization: Quantization | None) -> int:
    """Return the bytes that packed weights pass through when they are used; 0 where none is packed."""
    packed = _packed_parameters(model, quantization)
    coded, experts = quantization != "int8", quantization == "mxfp4"
    parts = (
        scratch_bytes(p.shape[-2] if experts else packed[id(p)][0], packed[id(p)][1], p.dtype.itemsize, coded=coded)
        for p in model.parameters()
        if id(p) in packed
    )
    tables = PAIRS_BYTES * len(packed) if coded and not experts else 0
    return max(parts, default=0) + tables


def packed_bytes(rows: int, columns: int, quantization: Quantization) -> int:
    """Return the bytes of a packed matrix with its scales."""
    count = rows * columns
    if quantization == "mxfp4":
        return count // 2 + count // 32
    if quantization == "int8":
        return count + 4 * rows
    scales = -(-count // 64)
    tables = 16 * 4
    if quantization.endswith("double"):
        return -(-count // 2) + scales + 4 * -(-scales // 256) + tables + 256 * 4 + 4
    return -(-count // 2) + 4 * scales + tables


def _packed_parameters(model: Any, quantization: Quantization | None) -> dict[int, tuple[int, int]]:
    """Return the shapes (f, d), by the ids of parameters, of what a format packs; routed experts count as one matrix.

    Raises
    ------
    InputError
        If the model has nothing that this format packs.
    """
    if quantization is None:
        return {}
    if quantization == "mxfp4":
        ours = model.config.model_type == "gpt_oss"
        packed = [p for p in model.parameters() if ours and p.ndim == 3]
        found = {id(p): (p.shape[0] * p.shape[1], p.shape[2]) for p in packed}
    else:
        linear = _linear_modules(model, quantization)
        # A head that is packed and then tied to the embedding is the embedding, in full.
        rest = {id(p) for m in model.modules() if m not in linear for p in m._parameters.values()}
        found = {id(m.weight): shape for m, shape in linear.items() if id(m.weight) not in rest}
    if not found:
        kind = type(model).__name__
        hint = "; nf4, nf4-double, fp4, fp4-double or int8 pack its linear modules" if quantization == "mxfp4" else ""
        raise InputError(f"{kind} has no weights that {quantization} packs{hint}")
    return found


def _linear_modules(model: Any, quantization: Quantization) -> dict[Any, tuple[int, int]]:
    """Return the modules that ``transformers.integrations.replace_with_bnb_linear`` would replace."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    stored = getattr(model.config, "quantization_config", None)
    as_stored = stored is not None and _packed(stored, "") == quantization
    left = _options(stored).get("llm_int8_skip_modules") if as_stored else None  # None for head and ties
    left = HfQuantizer.get_modules_to_not_convert(model, left, model._keep_in_fp32_modules)
    found: dict[Any, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D) or type(module) is nn.Linear:
            f, d = reversed(module.weight.shape) if isinstance(module, Conv1D) else module.weight.shape
            if should_convert_module(name, left):
                found[module] = (f, d)
    return found


def _config(name: str, path: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        if name in EMBEDDED:
            return _embedded_config(EMBEDDED[name])
        if path.is_file() and path.suffix.lower() == ".gguf":
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        if path.is_dir():
            return AutoConfig.from_pretrained(path)
        return AutoConfig.from_pretrained(name, **options_for_hub(name, {}))
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ModelError(f"no configuration of {name!r} can be read ({in_one_line(error)[:200]})") from error


def _embedded_config(embedded: Embedded) -> Any:
    from transformers import AutoConfig

    folder = cache_folder_of(embedded.file_name, embedded.sha256)
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder)
    with embedded.gguf() as path:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def _options(quantization: Any) -> dict[str, Any]:
    options: dict[str, Any] = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return options


def _packed(quantization: Any, name: str) -> Quantization | None:
    if quantization is None:
        return None
    options = _options(quantization)
    if options.get("load_in_8bit"):
        return "int8"
    if options.get("load_in_4bit"):
        kind = options.get("bnb_4bit_quant_type", "fp4")
        return read_quantization(f"{kind}-double" if options.get("bnb_4bit_use_double_quant") else kind)
    if options.get("quant_method") == "mxfp4":
        return "mxfp4"
    raise InputError(
        f"{name} is packed as {options.get('quant_method')}; plan knows the formats of bitsandbytes, and MXFP4"
    )

"""`load_model`: one door for every way a model can be named."""

import os
import re
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detjac_lanczos._requirements import require_docstrings
from detjac_lanczos.errors import InputError, ModelError, shortage_said
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.bitsandbytes import require_not_repacked
from detjac_lanczos.models.cache import WEIGHTS, check_small_files, damaged, sha256_of, unpacked_folder
from detjac_lanczos.models.catalogue import EMBEDDED
from detjac_lanczos.models.conversion import convert, why_fixed
from detjac_lanczos.models.dtypes import compute_dtype, parse_device, parse_dtype
from detjac_lanczos.models.fingerprint import fingerprint_of
from detjac_lanczos.models.hub import options_for_hub
from detjac_lanczos.models.loaded import LoadedModel, ModelLike
from detjac_lanczos.models.loading import loading_of
from detjac_lanczos.models.offloaded import execution_device
from detjac_lanczos.models.pretrained import load_tokenizer, load_weights, without_progress_bars
from detjac_lanczos.models.quantization import Packing, load_quantized, parse_quantization
from detjac_lanczos.models.refreshed import refreshed, remembered

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
UNPACKED_BYTES_PER_SECOND = 5e6


@torch.inference_mode(False)
def load_model(
    name_or_model: ModelLike,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantization: Packing | None = None,
    trust_remote_code: bool = False,
    **from_pretrained: Any,
) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Parameters
    ----------
    name_or_model
        An embedded name (``"smollm2"``, ``"gemma3-270m"``, see `list_models`), a folder, a ``.gguf`` file, a Hugging
        Face hub id, a live model, a pair (model, tokenizer), or a `LoadedModel`. Live ones are returned as they are:
        not converted, not moved, not switched to eval mode; a `LoadedModel` whose weights have changed since, with
        their fingerprint.
    tokenizer
        The tokenizer of a live model.
    dtype
        ``"auto"`` (as stored; float32 for embedded models and GGUF files, whose weights are unpacked), ``"float64"``,
        ``"float32"``, ``"bfloat16"``, ``"float16"`` or the torch type.
    device
        Where to put the weights; the CPU by default.
    quantization : {"nf4", "nf4-double", "fp4", "fp4-double", "int8"}, optional
        Have bitsandbytes pack the linear modules of the blocks on the way ("-double": the scales of 64 weights too);
        embedding and head stay as they are. What is computed is that of the packed numbers, decoded, in ``dtype``.
    trust_remote_code
        Let a hub model run the Python code it brings.
    **from_pretrained
        Handed on to ``AutoModelForCausalLM.from_pretrained``. With ``device_map``, ``max_memory`` and
        ``offload_folder`` a model is spread over devices, or what is too large for them stays in host memory or on disk
        and is read as it is used.

    Returns
    -------
    LoadedModel
        In eval mode, unless it came live.

    Raises
    ------
    InputError
        An unknown name, a wrong dtype or device, or one that differs from a live model's, or options of
        ``from_pretrained`` for a live one.
    ModelError
        Weights that are missing, of no use to the configuration, damaged or not finite, or no tokenizer beside them;
        too little memory, or too many open files, to load them.
    """
    wanted, place, kind = parse_dtype(dtype), parse_device(device), parse_quantization(quantization)
    if isinstance(name_or_model, tuple) and len(name_or_model) == 2 and tokenizer is None:
        name_or_model, tokenizer = name_or_model
    elif isinstance(name_or_model, tuple):
        raise InputError("a live model with its tokenizer is one pair: (model, tokenizer)")
    if kind is not None and isinstance(name_or_model, LoadedModel | nn.Module):
        raise InputError("a live model is not quantised here; load it with quantization, or quantise it yourself")
    if from_pretrained and isinstance(name_or_model, LoadedModel | nn.Module):
        raise InputError(f"{', '.join(from_pretrained)} would have no effect on a live model, which is taken as it is")
    if isinstance(name_or_model, LoadedModel):
        _require_as_it_is(name_or_model.model, wanted, place)
        return refreshed(name_or_model)
    if isinstance(name_or_model, nn.Module):
        return _live(name_or_model, tokenizer, wanted, place)
    if not isinstance(name_or_model, str | os.PathLike):
        raise InputError(f"a model is a name, a path or a transformers module, not {type(name_or_model).__name__}")
    if tokenizer is not None:
        raise InputError("a tokenizer goes with a live model only; a name or path brings its own")

    require_docstrings()
    if device is not None and "device_map" in from_pretrained:
        raise InputError("device and device_map both say where the weights go; give one of them")
    options = {"trust_remote_code": trust_remote_code} | from_pretrained
    with shortage_said(f"load {os.fspath(name_or_model)!r}", ModelError):
        with torch.device("cpu"):  # where the caller has new tensors made says nothing of where weights go
            loaded = _named(name_or_model, wanted, place, kind, options)
        return remembered(replace(loaded, loading=loading_of(loaded.model, options)))


def _named(
    name_or_path: str | os.PathLike[str],
    wanted: torch.dtype | None,
    place: torch.device | None,
    kind: str | None,
    options: dict[str, Any],
) -> LoadedModel:
    name = os.fspath(name_or_path)
    if not name:
        raise InputError(f"the model's name is empty; give {', '.join(EMBEDDED)}, a hub id, a folder or a .gguf file")
    path = path_of(name)
    own = options | {"trust_remote_code": False}  # what we unpacked ourselves brings no code
    if name in EMBEDDED:
        embedded = EMBEDDED[name]
        folder = unpacked_folder(embedded.file_name, embedded.sha256, embedded.conversion_seconds, embedded.gguf)
        return _from_cache(folder, name, wanted, place, kind, **own)
    if path.exists():
        name = os.path.abspath(path)
    if path.is_file():
        return _from_cache(_unpacked_file(path), name, wanted, place, kind, **own)
    if path.is_dir():
        if not (path / options.get("subfolder", "") / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise InputError(
                    f"folder {name} holds an adapter; load its model with peft and give that as live model"
                )
            raise InputError(f"folder {name} holds no config.json; give a model folder or a .gguf file")
        source = str(path)
    elif _looks_like_a_path(name_or_path) or not HUB_ID.fullmatch(name):
        raise InputError(
            f"no model at {name!r}; give an existing folder or .gguf file, or one of {', '.join(EMBEDDED)}"
        )
    else:
        source, options = name, options_for_hub(name, options)
    tokenizer = load_tokenizer(source, name, **options)  # first: it takes no time to fail
    if kind is not None:
        model = load_quantized(source, name, wanted, kind, place, **options)
        return LoadedModel(model, tokenizer, name, fingerprint_of(model, finite_as=name), kind)
    model = load_weights(source, name, wanted, **options)
    fingerprint = fingerprint_of(model, finite_as=name)
    return LoadedModel(model if place is None else model.to(place), tokenizer, name, fingerprint)


def path_of(name: str | os.PathLike[str]) -> Path:
    """Return the path that a name would be, there or not.

    Raises
    ------
    InputError
        If no path can have it: too long, with a null byte, in the home of nobody.
    """
    try:
        path = Path(name).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"no model at {str(name)[:100]!r} ({reason}); give an existing folder or file") from None
    return path


def _live(model: nn.Module, tokenizer: Any, dtype: torch.dtype | None, device: torch.device | None) -> LoadedModel:
    from transformers import PreTrainedConfig, PreTrainedModel

    inner = without_adapters(model)
    if not isinstance(inner, PreTrainedModel):
        inside = [name for name in ("_orig_mod", "module") if isinstance(getattr(inner, name, None), nn.Module)]
        hint = f"; give the one inside it, model.{inside[0]}" if inside else ""
        raise InputError(f"a live model must be a transformers PreTrainedModel, not {type(model).__name__}{hint}")
    if not isinstance(inner.config, PreTrainedConfig):
        raise InputError(
            f"the config of this {type(inner).__name__} is a {type(inner.config).__name__}; give it its own"
        )
    _require_as_it_is(model, dtype, device)
    name = inner.config.name_or_path or type(inner).__name__
    require_not_repacked(model)
    return remembered(LoadedModel(model, tokenizer, name, fingerprint_of(model, finite_as=name), live=True))


def _require_as_it_is(model: Any, dtype: torch.dtype | None, device: torch.device | None) -> None:
    """Refuse to convert a live model in place: it belongs to the caller."""
    own, here = compute_dtype(model), execution_device(model)
    if dtype not in (None, own):
        raise InputError(f"this model is live in {own}, not {dtype}; {_otherwise(model, 'dtype', 'a converted copy')}")
    if device is not None and (here.type != device.type or device.index not in (None, here.index)):
        raise InputError(f"this model is live on {here}, not {device}; {_otherwise(model, 'device', 'a copy there')}")


def _otherwise(model: Any, option: str, copy: str) -> str:
    fixed = why_fixed(model)
    return f"its weights are {fixed}: load it as you want it" if fixed else f"detach(…, {option}=) takes {copy}"


def _unpacked_file(path: Path) -> Path:
    if path.suffix.lower() != ".gguf":
        raise InputError(f"{path} is a file but no .gguf; give the model's folder instead")
    seconds = max(1, round(path.stat().st_size / UNPACKED_BYTES_PER_SECOND))
    return unpacked_folder(path.name, sha256_of(path), seconds, lambda: nullcontext(path.resolve()))


def _from_cache(
    folder: Path,
    name: str,
    dtype: torch.dtype | None,
    device: torch.device | None,
    kind: str | None,
    **from_pretrained: Any,
) -> LoadedModel:
    if "device_map" in from_pretrained and kind is None and dtype not in (None, torch.float32):
        raise InputError(f"{name} is unpacked in float32 and spread or offloaded as it is; leave dtype='auto'")
    fingerprint = check_small_files(folder)
    with without_progress_bars():
        tokenizer = load_tokenizer(str(folder), name, **from_pretrained)  # its files are whole: no damage fails here
    try:
        with without_progress_bars():
            model = load_weights(str(folder), name, torch.float32, **from_pretrained)
    except ModelError:
        if from_pretrained.keys() - {"trust_remote_code"}:
            raise  # options may be at fault
        raise damaged(folder, WEIGHTS) from None
    if fingerprint_of(model) != fingerprint:
        raise damaged(folder, WEIGHTS)
    if kind is not None:
        del model
        with without_progress_bars():
            model = load_quantized(str(folder), name, dtype or torch.float32, kind, device, **from_pretrained)
        return LoadedModel(model, tokenizer, name, fingerprint_of(model), kind)
    if dtype is not None and dtype != torch.float32:
        convert(model, dtype)
        fingerprint = fingerprint_of(model)
    return LoadedModel(model if device is None else model.to(device), tokenizer, name, fingerprint)


def _looks_like_a_path(name: Any) -> bool:
    return not isinstance(name, str) or name.lower().endswith(".gguf") or name.startswith(("/", "./", "../", "~"))

"""Models that transformers loads itself: hub ids and folders, with its failures said in one line."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from detjac_lanczos.errors import DetjacError, InputError, ModelError, in_one_line, shortage
from detjac_lanczos.models.alignment import align
from detjac_lanczos.models.belonging import no_causal_model, require_all_taken, require_belonging
from detjac_lanczos.models.dtypes import DTYPES
from detjac_lanczos.models.mxfp4 import config_without_packing, gpt_oss_with_packed_experts, stored_in_mxfp4

_FOR_CONFIG = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "force_download", "proxies")
_NO_TOKENIZER = "Couldn't instantiate the backend tokenizer"
_SPECIAL = re.compile(r"[<\[].*[>\]]")
_FEW = 16
_WHOLE = "get a whole copy, with the config.json that belongs to its weights"
_NO_CAUSAL_MODEL = ("Unrecognized configuration class", "does not recognize this architecture")


def load_weights(
    source: str, name: str, dtype: torch.dtype | None, trust_remote_code: bool, **from_pretrained: Any
) -> Any:
    """Load a model with ``from_pretrained``; `dtype` None means as stored.

    Parameters
    ----------
    source
        Hub id or folder.
    name
        What messages call it.
    **from_pretrained
        Handed to ``AutoModelForCausalLM.from_pretrained``, or to ``AutoModelForMultimodalLM`` where only that knows the
        model (one that also sees images or hears, around a language model).

    Raises
    ------
    ModelError
        If it cannot be found or read, or if weights and configuration do not belong together: weights that are missing
        or of another shape (transformers would fill them with random numbers), further ones (it would drop them).
    UnsupportedModelError
        If it is no causal language model.
    """
    shared = _for_config(from_pretrained)
    lenient = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    with _failures_in_one_line(source, name, shared):
        stored = _config(source, name, shared)
        loading, options = auto_class(stored.get("model_type")), from_pretrained
        if "quantization_config" not in from_pretrained and stored_in_mxfp4(stored):
            config, rest = config_without_packing(source, **from_pretrained)
            loading, options = gpt_oss_with_packed_experts(), {**shared, **rest, "config": config}
        model, info = loading.from_pretrained(
            source,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=trust_remote_code,
            **lenient | options,
        )
    require_belonging(model, info, name, _WHOLE)
    if not any(hasattr(model.config, key) for key in from_pretrained if key != "quantization_config"):
        require_all_taken(model, info, name, packed="quantization_config" in stored)  # else it is changed on purpose
    align(model)
    return model.eval()


def load_tokenizer(source: str, name: str, trust_remote_code: bool, **from_pretrained: Any) -> Any:
    """Load the tokenizer of a model that `load_weights` loads with these options.

    ``revision``, ``token``, ``subfolder``, ``cache_dir``, ``local_files_only`` and the like are for both. Errors are
    those of `load_weights`, and a `ModelError` if there is none.
    """
    from transformers import AutoTokenizer

    shared = _for_config(from_pretrained)
    with _failures_in_one_line(source, name, shared):
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **shared)
        except (AttributeError, KeyError, TypeError) as error:  # files of another form
            if fault := _fault_of(_config(source, name, shared), error):
                raise ModelError(f"{name}: {fault}") from error
            raise _no_tokenizer(name) from error
        if not _knows_words(tokenizer):
            raise _no_tokenizer(name)
        return tokenizer


def _knows_words(tokenizer: Any) -> bool:
    """Tell a tokenizer from one of special tokens alone, which transformers makes for many families out of nothing."""
    return len(tokenizer) > _FEW or any(not _SPECIAL.fullmatch(word) for word in tokenizer.get_vocab())


@contextmanager
def _failures_in_one_line(source: str, name: str, shared: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except DetjacError:
        raise
    except Exception as error:  # transformers, torch and the Python code of a model fail in any way
        try:
            config = _config(source, name, shared)
        except (OSError, ValueError):  # it is this that failed
            config = {}
        if fault := _fault_of(config, error):
            raise ModelError(f"{name}: {fault}") from error
        if any(words in str(error) for words in _NO_CAUSAL_MODEL):
            raise no_causal_model(name, _architectures(config)) from error
        if fault := _damaged_json(source):
            raise ModelError(f"{name}: {fault}; get a sound copy of it") from error
        if _NO_TOKENIZER in str(error):
            raise _no_tokenizer(name) from error
        raise _not_loaded(error, name) from error


def _damaged_json(source: str) -> str | None:
    """Return which of the files of a folder that are to hold JSON does not, and why."""
    for path in sorted(Path(source).glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            if shortage(error):
                raise
            return f"{path.name} holds no JSON ({error})"
    return None


def _for_config(from_pretrained: Mapping[str, Any]) -> dict[str, Any]:
    return {key: from_pretrained[key] for key in _FOR_CONFIG if key in from_pretrained}


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence the bars of transformers for loads that take a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def auto_class(kind: str | None) -> Any:
    """Return the class of transformers that knows models of a ``model_type``."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
    from transformers.models.auto import modeling_auto

    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    multimodal = kind in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    return AutoModelForMultimodalLM if multimodal and not causal else AutoModelForCausalLM


def _architectures(config: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in config.get("architectures") or [config.get("model_type", "model of unknown type")]]


def _config(source: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    try:
        config = PreTrainedConfig.get_config_dict(source, **options)[0]
    except TypeError:  # null, or a number
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{name}: config.json holds no JSON object; get the one that belongs to the weights")
    return config


def _fault_of(config: Mapping[str, Any], error: Exception) -> str | None:
    """Return what is wrong with a configuration, and how to mend it; None where an error does not come from there.

    What transformers raises tells the value that it met, not the field.
    """
    import transformers

    stored = config.get("dtype", config.get("torch_dtype"))
    of_the_dtype = isinstance(error, TypeError | AttributeError) or "dtype=" in str(error)
    if of_the_dtype and not isinstance(stored, Mapping) and stored not in (None, "auto", *DTYPES):
        return f"nothing is computed in {stored!r}, the dtype in config.json; write one of {', '.join(DTYPES)} there"
    named = str((config.get("architectures") or [""])[0])
    if "does not recognize this architecture" in str(error) and hasattr(transformers, named):
        kind = config.get("model_type")
        return f"config.json's model_type {kind!r} is unknown to transformers; write the one of a {named} there"
    if isinstance(error, KeyError) and error.args:
        parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
        fields = [field for part in parts for field, value in part.items() if value == error.args[0]]
        if fields:
            return f"config.json's {fields[0]} is {error.args[0]!r}, which transformers does not know; mend it there"
    return None


def _no_tokenizer(name: str) -> ModelError:
    return ModelError(
        f"{name} has no tokenizer, or none that can be read here; put its files (tokenizer.json) beside the weights, "
        "or load the model by hand and give it as (model, tokenizer), or as (model, None) where input_ids are given"
    )


def _not_loaded(error: Exception, name: str) -> ModelError | InputError:
    text = in_one_line(error)
    if "trust_remote_code" in text:
        return InputError(f"{name} brings its own Python code; if you trust it, pass trust_remote_code=True")
    reason = text.split(". ")[0]
    if isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError | EOFError) and str(error):
        reason = f"{type(error).__name__}: {reason}"  # the kind says more
    return ModelError(f"cannot load {name!r}: {reason[:300]}; check the name, or that the files are whole")

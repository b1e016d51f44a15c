"""Models that transformers loads itself: hub ids and folders, with its failures said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from detjac_lanczos.errors import InputError, ModelError


def load_pretrained(
    source: str, name: str, dtype: torch.dtype | None, trust_remote_code: bool, **from_pretrained: Any
) -> tuple[Any, Any]:
    """Load (model, tokenizer) with ``from_pretrained``; `dtype` None means as stored.

    Parameters
    ----------
    source
        Hub id or folder.
    name
        What messages call it.
    **from_pretrained
        Handed to ``AutoModelForCausalLM.from_pretrained``; ``revision``, ``token``, ``subfolder``, ``cache_dir`` and
        ``local_files_only`` to the tokenizer too.

    Raises
    ------
    ModelError
        If it cannot be found, read, or lacks weights (transformers would fill them with random numbers).
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shared = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "force_download", "proxies")
    common = {"trust_remote_code": trust_remote_code}
    for_tokenizer = common | {key: from_pretrained[key] for key in shared if key in from_pretrained}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto" if dtype is None else dtype, output_loading_info=True, **common, **from_pretrained
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **for_tokenizer)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise _in_one_line(error, name) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name} lacks {len(missing)} weights of its architecture, the first is {missing[0]!r}; get a whole copy"
        )
    return model.eval(), tokenizer


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


def _in_one_line(error: Exception, name: str) -> ModelError | InputError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return InputError(f"{name} brings its own Python code; if you trust it, pass trust_remote_code=True")
    reason = text.split(". ")[0] or type(error).__name__
    return ModelError(f"cannot load {name!r}: {reason[:300]}; check the name, or that the files are whole")

"""Models that bitsandbytes quantises as they are loaded: embedding and head stay as they are, in full."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from detjac_lanczos.errors import InputError, ModelError
from detjac_lanczos.models.conversion import convert
from detjac_lanczos.models.packed_modules import packing_of
from detjac_lanczos.models.pretrained import load_weights

Packing = Literal["nf4", "nf4-double", "fp4", "fp4-double", "int8"]
"""What a model can be packed in as it is loaded."""
Quantization = Literal[Packing, "mxfp4"]
KINDS: tuple[Packing, ...] = get_args(Packing)


def read_quantization(name: str | None, known: Sequence[Quantization] = get_args(Quantization)) -> Quantization | None:
    """Return a quantisation by its name; None stays None.

    Raises
    ------
    InputError
        If there is none of that name among those that are known.
    """
    if name is None:
        return None
    lower = name.lower() if isinstance(name, str) else name
    found = next((kind for kind in known if kind == lower), None)
    if found is None:
        raise InputError(f"quantization {lower!r} is not known; use one of {', '.join(known)}")
    return found


def parse_quantization(kind: str | None) -> Quantization | None:
    """Return a kind of quantisation that is known and possible here; None stays None.

    Raises
    ------
    InputError
        If there is no such kind.
    ModelError
        If bitsandbytes is not installed.
    """
    found = read_quantization(kind, KINDS)
    if found is not None and find_spec("bitsandbytes") is None:
        raise ModelError("quantization needs bitsandbytes; install it with: pip install 'detjac-lanczos[quantized]'")
    return found


def load_quantized(
    source: str, name: str, dtype: torch.dtype | None, kind: str, device: torch.device | None, **options: Any
) -> Any:
    """Load a model as `load_weights` does, the linear modules of the blocks quantised on the way.

    Parameters
    ----------
    dtype : torch.dtype or None
        Of everything that is not quantised, and of what is computed. There is no quantisation of float64: such weights
        are quantised from float32.
    kind : {"nf4", "nf4-double", "fp4", "fp4-double", "int8"}
        "-double": with its scales quantised too.
    device : torch.device or None
        Where the weights go; the CPU by default.

    Raises
    ------
    InputError
        If options say how to quantise too, or the model is stored quantised, and not so.
    """
    if "quantization_config" in options:
        raise InputError("quantization and quantization_config both say how to quantise; give one of them")
    from transformers import BitsAndBytesConfig

    stored = torch.float32 if dtype is torch.float64 else dtype
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind.removesuffix("-double"),
            bnb_4bit_use_double_quant=kind.endswith("-double"),
            bnb_4bit_compute_dtype=stored or torch.float32,
        )
    )
    placed = {"device_map": {"": device or torch.device("cpu")}, "quantization_config": config}
    model = load_weights(source, name, stored, **placed | options)
    if (packing := packing_of(model)) != _packing(kind):
        raise InputError(f"{name} is stored packed as {packing}, and stays so; leave quantization out")
    if dtype is torch.float64:
        convert(model, dtype)
    return model


def _packing(kind: str) -> str:
    format_name = "LLM.int8" if kind == "int8" else kind.removesuffix("-double").upper()
    return f"{format_name}{' with double quantisation' if kind.endswith('-double') else ''} (bitsandbytes)"

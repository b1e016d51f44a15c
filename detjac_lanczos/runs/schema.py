"""The shape of run.json, as data: which parts a record has and of what kind, down to every number that is shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.models.quantization import KINDS
from detjac_lanczos.solvers import Status

Shape = Any
"""A class (float: any finite number), a list of one shape (its items), a dict of shapes,
a tuple of shapes that hold together, or one of the kinds below."""


@dataclass(frozen=True)
class Maybe:
    """A part that may be None."""

    shape: Shape


@dataclass(frozen=True)
class Pair:
    """A list of two."""

    shape: Shape


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class AnyOf:
    """A part that has one of a few shapes."""

    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Values:
    """An object with any names, whose values have one shape."""

    shape: Shape


@dataclass(frozen=True)
class Sometimes:
    """A part that only some runs have."""

    shape: Shape


_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", dict: "an object"}

_CANDIDATE = {"token": str, "id": int, "score": float}
_COMPLETENESS = {
    "k": int,
    "guards": int,
    "delta": float,
    "seed": int,
    "number": int,
    "steps": [int],
    "products": int,
    "tau": float,
    "upper": [float],
    "rounding": float,
    "complete": bool,
    "cluster": bool,
    "sigma_1": float,
    "sigma_k": float,
    "floor": float,
    "threshold": Maybe(float),
}
_CERTIFICATE = {
    "k": int,
    "claimed": int,
    "tol": float,
    "residual": float,
    "e_k": float,
    "orthonormality": Pair(float),
    "adjoint_defect": float,
    "sigma_1": float,
    "floor": float,
    "clusters": [{"indices": [int], "residual": float}],
    "completeness": Maybe(_COMPLETENESS),
    "line": str,
}
_SURVEY = {
    "values": [float],
    "residuals": [float],
    "sigma_1": Pair(float),
    "confidence": float,
    "operators": int,
    "share": float,
    "frobenius": float,
    "probes": int,
    "flagged": bool,
}
_LOADING = {
    "revision": Sometimes(str),
    "commit": Sometimes(str),
    "subfolder": Sometimes(str),
    "device_map": Sometimes(AnyOf((str, Values(AnyOf((str, int)))))),
    "max_memory": Sometimes(Values(AnyOf((str, int)))),
    "offload_folder": Sometimes(str),
    "trust_remote_code": Sometimes(bool),
}
_WORK = {"row_sweeps": float, "passes": int, "seconds": float}
_TOKEN = {
    "prompt": int,
    "index": int,
    "id": Maybe(int),
    "token": str,
    "singular_values": [Maybe(float)],
    "residuals": [Pair(Maybe(float))],
    "energy": Maybe(Pair(float)),
    "floor": float,
    "status": OneOf(tuple(status.value for status in Status)),
    "advice": str,
    "certificate": Maybe(_CERTIFICATE),
    "survey": Maybe(_SURVEY),
    "stable_rank": Maybe(float),
    "stable_rank_interval": Maybe(Pair(float)),
    "stable_rank_confidence": Maybe(float),
    "left": [[_CANDIDATE | {"logit": float}]],
    "right": [[_CANDIDATE]],
    "contribution": Maybe({"share": float, "cosine": float, "captured": float}),
    "work": _WORK | {"products_forward": int, "products_transposed": int, "probe_products": int},
}
_PREDICTION = [{"token": str, "id": int, "probability": float}]
_RECONSTRUCTION = {
    "relative_error": Maybe(float),
    "norm_error": Maybe(float),
    "offset_share": Maybe(float),
    "ordinary_relative_error": Maybe(float),
    "model_relative_error": Maybe(float),
}
RECORD: dict[str, Shape] = {
    "versions": {"detjac_lanczos": str},
    "created": str,
    "model": str,
    "live": bool,
    "fingerprint": str,
    "quantization": Maybe(OneOf(KINDS)),
    "loading": _LOADING,
    "prompt": Maybe(str),
    "prompts": [Maybe(str)],
    "token_ids": [[int]],
    "position_ids": Maybe([[int]]),
    "prompt_tokens": [[str]],
    "freeze": OneOf(get_args(Freeze)),
    "dtype": str,
    "device": str,
    "route": str,
    "definition": {
        "family": str,
        "input": str,
        "target_definition": str,
        "frozen": str,
        "tail": str,
        "position": AnyOf((int, [int])),
        "weights": Sometimes(str),
        "switched_off": Sometimes([str]),
    },
    "options": {
        "k": Maybe(int),
        "threshold": Maybe(float),
        "energy": Maybe(float),
        "tol": float,
        "method": str,
        "polish": Maybe(AnyOf((OneOf(("flagged",)), int))),
        "seed": int,
        "certify": Maybe(OneOf(("triplets", "complete"))),
        "delta": float,
        "block": Maybe(int),
        "max_products": Maybe(int),
        "tokens": Maybe([Pair(int)]),
        "source": str,
        "target": str,
        "position": int,
        "chat": bool,
        "add_special_tokens": bool,
        "memory": Maybe(int),
    },
    "prediction": _PREDICTION,
    "predictions": [_PREDICTION],
    "reconstruction": _RECONSTRUCTION,
    "reconstructions": [_RECONSTRUCTION],
    "tokens": [_TOKEN],
    "work": _WORK
    | {
        "method": str,
        "why": str,
        "dense_row_sweeps": float,
        "products": {"forward": int, "transposed": int},
        "columns": int,
    },
    "plan": Maybe({"mixing": Values(str), "gates": Values(str), "bytes": Values(int)}),
    "choices": {
        "solver": dict,
        "gemm": Values(str),
        "packed": Sometimes(Values(str)),
        "mixing": Sometimes(Values(str)),
    },
    "times": (Values(float), {"total": float}),
}


def first_fault(value: Any, shape: Shape = RECORD, place: str = "") -> str | None:
    """Return what is wrong with the first part that has not its shape, such as "lacks tokens[2].id", or None."""
    if isinstance(shape, Maybe):
        return None if value is None else first_fault(value, shape.shape, place)
    if isinstance(shape, Sometimes):
        return first_fault(value, shape.shape, place)
    if isinstance(shape, AnyOf):
        faults = [first_fault(value, one, place) for one in shape.shapes]
        return faults[0] if all(faults) else None
    if isinstance(shape, OneOf):
        return None if value in shape.words else f"says {place} is {value!r}, not {' or '.join(shape.words)}"
    if isinstance(shape, tuple):
        return next((fault for part in shape if (fault := first_fault(value, part, place))), None)
    if isinstance(shape, Values):
        shape = dict.fromkeys(value if isinstance(value, dict) else (), shape.shape)
    if isinstance(shape, Pair):
        if not isinstance(value, list) or len(value) != 2:
            return f"says {place} is {shown(value)}, not a list of two"
        shape = [shape.shape]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"says {place} is {shown(value)}, not a list"
        items = (first_fault(item, shape[0], f"{place}[{number}]") for number, item in enumerate(value))
        return next((fault for fault in items if fault), None)
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"says {place} is {shown(value)}, not an object"
        for name, part in shape.items():
            inside = f"{place}.{name}" if place else name
            if name not in value and isinstance(part, Sometimes):
                continue
            if name not in value:
                return f"lacks {inside}"
            if fault := first_fault(value[name], part, inside):
                return fault
        return None
    return None if _is(value, shape) else f"says {place} is {shown(value)}, not {_WORDS[shape]}"


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        return False  # not finite, or a whole number that no float holds
    return isinstance(value, int | float if kind is float else kind)


def shown(value: Any) -> str:
    """Return what something is, on one line of 40 letters at most."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"

"""The shape of run.json, as data: which parts a record has and of what kind, down to every number that is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
class Later:
    """A part that records of earlier versions lack; it may be None."""

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
    "completeness": Later(_COMPLETENESS),
    "line": str,
}
_SURVEY = {
    "values": [float],
    "residuals": [float],
    "sigma_1": Pair(float),
    "confidence": float,
    "operators": Later(int),
    "share": float,
    "frobenius": float,
    "probes": int,
    "flagged": bool,
}
_LOADING = {
    "revision": Later(str),
    "commit": Later(str),
    "subfolder": Later(str),
    "device_map": Later(AnyOf((str, Values(AnyOf((str, int)))))),
    "max_memory": Later(Values(AnyOf((str, int)))),
    "offload_folder": Later(str),
    "trust_remote_code": Later(bool),
}
_WORK = {"row_sweeps": float, "passes": int, "seconds": float}
_TOKEN = {
    "prompt": int,
    "index": int,
    "id": Maybe(int),
    "token": str,
    "singular_values": [Maybe(float)],
    "residuals": [Pair(Maybe(float))],
    "energy": Later(Pair(float)),
    "floor": Later(float),
    "status": OneOf(tuple(status.value for status in Status)),
    "advice": str,
    "certificate": Maybe(_CERTIFICATE),
    "survey": Later(_SURVEY),
    "stable_rank": Maybe(float),
    "stable_rank_interval": Maybe(Pair(float)),
    "stable_rank_confidence": Maybe(float),
    "left": [[_CANDIDATE | {"logit": float}]],
    "right": [[_CANDIDATE]],
    "contribution": Maybe({"share": float, "cosine": float, "captured": float}),
    "work": _WORK | {"products_forward": int, "products_transposed": int, "probe_products": Later(int)},
}
RECORD: dict[str, Shape] = {
    "versions": {"detjac_lanczos": str},
    "created": str,
    "model": str,
    "live": Later(bool),
    "fingerprint": str,
    "quantization": Later(OneOf(KINDS)),
    "loading": Later(_LOADING),
    "prompts": [Maybe(str)],
    "token_ids": [[int]],
    "prompt_tokens": [[str]],
    "freeze": OneOf(("gate", "up", "half")),
    "dtype": str,
    "definition": {
        "family": str,
        "input": str,
        "target_definition": str,
        "position": AnyOf((int, [int])),
        "weights": Later(str),
    },
    "options": {
        "k": Maybe(int),
        "threshold": Later(float),
        "energy": Later(float),
        "tol": float,
        "method": str,
        "polish": Later(AnyOf((OneOf(("flagged",)), int))),
        "seed": int,
        "certify": Maybe(str),
        "delta": Later(float),
        "block": Maybe(int),
        "max_products": Later(int),
        "tokens": Maybe([Pair(int)]),
        "source": str,
        "target": str,
        "position": int,
        "chat": bool,
        "add_special_tokens": bool,
        "memory": Later(int),
    },
    "predictions": [[{"token": str, "id": int, "probability": float}]],
    "reconstructions": [
        {
            "relative_error": Maybe(float),
            "norm_error": Maybe(float),
            "offset_share": Maybe(float),
            "ordinary_relative_error": Maybe(float),
            "model_relative_error": Later(float),
        }
    ],
    "tokens": [_TOKEN],
    "work": _WORK
    | {
        "method": str,
        "why": str,
        "dense_row_sweeps": float,
        "products": {"forward": int, "transposed": int},
        "columns": int,
    },
    "plan": Later({"mixing": Values(str), "gates": Values(str), "bytes": Values(int)}),
    "choices": {"solver": dict, "gemm": Values(str), "packed": Later(Values(str)), "mixing": Later(Values(str))},
    "times": (Values(float), {"total": float}),
}


def first_fault(value: Any, shape: Shape = RECORD, place: str = "") -> str | None:
    """Return what is wrong with the first part that has not its shape, such as "lacks tokens[2].id", or None."""
    if isinstance(shape, Maybe | Later):
        return None if value is None else first_fault(value, shape.shape, place)
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
            return f"says {place} is {_shown(value)}, not a list of two"
        shape = [shape.shape]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"says {place} is {_shown(value)}, not a list"
        items = (first_fault(item, shape[0], f"{place}[{number}]") for number, item in enumerate(value))
        return next((fault for fault in items if fault), None)
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"says {place} is {_shown(value)}, not an object"
        for name, part in shape.items():
            inside = f"{place}.{name}" if place else name
            if name not in value and isinstance(part, Later):
                continue
            if name not in value:
                return f"lacks {inside}"
            if fault := first_fault(value[name], part, inside):
                return fault
        return None
    return None if _is(value, shape) else f"says {place} is {_shown(value)}, not {_WORDS[shape]}"


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"

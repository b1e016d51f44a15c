"""Sources and targets as users type them and as records keep them: "embeddings", "output", "layer(12)"."""

import re

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.places import Place, attention, layer, mlp

_INDEXED = {"layer": layer, "attention": attention, "mlp": mlp}
_CALL = re.compile(r"\s*(layer|attention|mlp)\s*\(\s*(-?\d+)\s*\)\s*")


def parse_place(text: str) -> str | Place:
    """Return ``layer(12)`` and its like as a `Place`; other names as they are, for `detach` to judge.

    Raises
    ------
    InputError
        If the text has brackets but is no place.
    """
    if found := _CALL.fullmatch(text):
        return _INDEXED[found[1]](int(found[2]))
    if "(" in text or text in _INDEXED:
        raise InputError(f"{text!r} is no place in the network; write layer(12), attention(3) or mlp(5)")
    return text.strip()

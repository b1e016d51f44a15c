"""Which field of a config.json is at fault where transformers fails: it tells the value that it met, not the field."""

from collections.abc import Mapping
from typing import Any

from detjac_lanczos.models.dtypes import DTYPES


def fault_of(config: Mapping[str, Any], error: Exception) -> str | None:
    """Return what is wrong with a configuration, and how to mend it; None where an error does not come from there.

    Parameters
    ----------
    config : mapping
        The content of config.json.
    error : Exception
        What transformers raised.
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

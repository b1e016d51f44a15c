"""One short declaration per decoder family, found by the class name of the transformers model."""

from torch import nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.declare import Family, without_adapters
from detjac_lanczos.frozen.families.gemma3 import GEMMA3
from detjac_lanczos.frozen.families.llama import LLAMA

FAMILIES: tuple[Family, ...] = (LLAMA, GEMMA3)


def family_of(model: nn.Module) -> Family:
    """Return the declaration that serves a model.

    Raises
    ------
    UnsupportedModelError
        If none does; the message lists those that exist.
    """
    model = without_adapters(model)
    for family in FAMILIES:
        if family.serves(model):
            return family
    known = "; ".join(f"{family.name} ({', '.join(family.served)})" for family in FAMILIES)
    raise UnsupportedModelError(f"the family of {type(model).__name__} is not supported; supported: {known}")

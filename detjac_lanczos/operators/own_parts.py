"""How far the modules of blocks that are observed lie from the model's own, each on the same input.

Passes of many blocks may end far apart of rounding alone, and a near tie may send a token to another expert in one of
them. On the same rows a module's rounding is its own, and its router chooses alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.frozen.calls import leaving
from detjac_lanczos.frozen.capture import run_prompt
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.observed import observed_copy
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.structural_copy import structural_copy
from detjac_lanczos.models.linear_modules import multiply_by_decoded_weights
from detjac_lanczos.models.text_model import configurations_of
from detjac_lanczos.operators.bars import relative


@in_own_precision
def distances_of_parts(model: nn.Module, family: Family, prompt: Prompt) -> list[tuple[str, float]]:
    """Run a prompt as the model does, then as it is observed, every module of a block on the rows of the first pass.

    What such a module gives in the first pass takes the place of what it gives in the second. Both multiply by decoded
    weights, whatever packed modules round of their own. Between the passes what was given lies in host memory: a device
    may have no room for it beside the weights.

    Parameters
    ----------
    model : transformers model; never written to
    family : Family
    prompt : Prompt

    Returns
    -------
    list of (str, float)
        Modules ("blocks.3.self_attn") in the order of the pass with ‖observed − own‖ / ‖own‖ of what they give, and
        the decoder's "output". What differs between modules is seen in the next one.
    """
    own, observed = structural_copy(model), observed_copy(model)
    multiply_by_decoded_weights(own)
    values: dict[str, list[Tensor]] = {}  # one for each call: a dropout may serve two branches
    distances: list[tuple[str, float]] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            values.setdefault(name, []).append(leaving(out).to(torch.device("cpu"), copy=True))

        return hook

    def compare(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            found = leaving(out)
            value = values[name].pop(0).to(found.device)
            distances.append((name, relative(found.double() - value, value)))
            if name != "output":
                return value if found is out else (value, *out[1:])

        return hook

    with ExitStack() as stack:
        for name, module in _parts(family, own):
            stack.enter_context(module.register_forward_hook(keep(name)))
        run_prompt(own, prompt)
    with ExitStack() as stack:
        for name, module in _parts(family, observed):
            stack.enter_context(module.register_forward_hook(compare(name)))
        run_prompt(observed, prompt)
    return distances


def _parts(family: Family, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of every block, and the decoder that holds them, by name."""
    for index, block in enumerate(family.blocks_of(model)):
        for name, part in block.named_children():
            yield f"blocks.{index}.{name}", part
    yield "output", family.decoder_of(model)


def runs_foreign_functions(model: nn.Module) -> bool:
    """Tell whether attention, its masks or experts of a model run through a function that is not transformers' own."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    named = []
    for config in configurations_of(model):
        attention, experts = (getattr(config, f"_{kind}_implementation", None) for kind in ("attn", "experts"))
        named += [ALL_ATTENTION_FUNCTIONS.get(attention), ALL_MASK_ATTENTION_FUNCTIONS.get(attention)]
        named.append(ALL_EXPERTS_FUNCTIONS.get(experts))
    code = {type(module).__module__: None for module in model.modules()}
    eager = (getattr(sys.modules.get(name), "eager_attention_forward", None) for name in code)
    return not all(map(_is_of_transformers, filter(None, [*named, *eager])))


def _is_of_transformers(function: Any) -> bool:
    """Tell whether a function was written where it says, in transformers' code; a wrapper may bear its name alone."""
    written = getattr(function, "__globals__", {}).get("__name__", "")
    return written.startswith("transformers.") and written == getattr(function, "__module__", None)

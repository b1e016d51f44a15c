"""How wrong a sound network may be, and the refusal of one that is worse."""

from __future__ import annotations

import torch
from torch import Tensor

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.affine import AffineNetwork

BARS = {torch.float64: 1e-9, torch.float32: 5e-5, torch.float16: 0.03}
"""Largest relative error of a sound network; 0.1 in bfloat16.

Rounding alone gives at most 1e-13 in float64, 1.5e-6 in float32, 3e-3 in float16 and 2.4e-2 in bfloat16 over all
families and freeze rules and models of up to 30 blocks, with heavy tails and sharp attention 5e-3 and 4.8e-2; a network
that misses a factor or freezes a wrong one is off by its own size. The bars leave room for deeper models.
"""

OWN_PASS = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Largest relative distance between passes of one model on one input: its own rounds to float32 inside, in float64 too,
and not as others do. 0.5 in half precision, where a near tie may send a token to another expert, and rounding grows
from block to block where attention is sharp.

Three blocks of the tests' families lie up to 3e-2 apart in bfloat16 and 4e-3 in float16, sharp ones 8e-2 and 1e-2; 30
random blocks 0.1 and 0.02, sharp ones 0.49 and 0.06, routed ones 0.5 and 0.3; SmolLM2 2e-2 and 3e-3. No figure parts
that from what is wrong: in half precision passes that lie further apart than `OWN_PARTS` are compared part by part.
"""

OWN_PARTS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.01}
"""Largest relative distance between a module of a block and the model's own on one input; 0.05 in bfloat16, and 0.03
there of functions that are not transformers' own: a temperature of 0.9 moves attention by 0.04.

Rounding alone gives at most 1.6e-3 in float16 and 9.9e-3 in bfloat16 over dense and routed families and models of up to
30 blocks, whatever it grows to behind them; where queries are 16 times as large 1.9e-2 in bfloat16, where they are 64
times as large, and attention all but a choice, 4.4e-3 and 4.8e-2.
"""


def bar(dtype: torch.dtype) -> float:
    """Return the largest error of a sound network in a precision."""
    return BARS.get(dtype, 0.1)


def own_pass_bar(dtype: torch.dtype) -> float:
    """Return how far passes of one model on one input may lie apart in a precision."""
    return OWN_PASS.get(dtype, 0.5)


def own_parts_bar(dtype: torch.dtype, *, foreign: bool = False) -> float:
    """Return how far a module of a block may lie from the model's own, or one of foreign functions, on one input."""
    return OWN_PARTS.get(dtype, 0.03 if foreign else 0.05)


def part_values_bar(dtype: torch.dtype) -> float:
    """Return how far a part of a network may lie from the observed one on one input: that is a single rounding or two.

    In half precision the largest seen are 3.7e-4 in float16 and 4.6e-3 in bfloat16.
    """
    return min(bar(dtype), own_parts_bar(dtype))


def require(network: AffineNetwork, claims: list[tuple[str, float, float]]) -> None:
    """Refuse a network of which a claim, with its error and the largest error of a sound network, does not hold.

    Raises
    ------
    UnsupportedModelError
        Naming the first.
    """
    for claim, error, allowed in claims:
        if not error <= allowed:
            raise UnsupportedModelError(
                f"the detached network of {network.loaded.name} fails its self-check: {claim} "
                f"(relative error {error:.1e}, allowed {allowed:.0e}); this model is not understood"
            )


def relative(error: Tensor, *terms: Tensor) -> float:
    """Return the length of an error relative to the lengths of the terms it is left of."""
    size = sum(float(term.double().norm()) for term in terms)
    return float(error.double().norm()) / (size or 1.0)

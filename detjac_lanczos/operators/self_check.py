"""Does a detached network keep what it claims? Its algebra against the model's own pass, on the prompt at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.models.dtypes import in_several_dtypes
from detjac_lanczos.operators.bars import bar, own_parts_bar, own_pass_bar, relative, require
from detjac_lanczos.operators.network import DetachedNetwork
from detjac_lanczos.operators.own_parts import distances_of_parts, runs_foreign_functions
from detjac_lanczos.operators.part_values import require_part_values
from detjac_lanczos.operators.what_runs import what_runs

_LARGE = 100.0
"""How much larger than the prompt one of the random inputs is: clamps that the prompt leaves alone then act."""

_passed: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.dtype], list[Any]]] = WeakKeyDictionary()
"""What ran in a model when a network of it last passed in full, by its freeze rule and dtype."""


def check(network: DetachedNetwork) -> None:
    """Check every prompt of a network cheaply, and the first network of a model, as it is, and freeze rule in full.

    Raises
    ------
    UnsupportedModelError
        As in `self_check`.
    """
    seen, choice, now = _passed.setdefault(network.model, {}), (network.freeze, network.dtype), what_runs(network.model)
    try:
        if seen.get(choice) != now:
            require_part_values(network)  # first: it names the part that is wrong
            self_check(network)
            seen[choice] = now
        else:
            claims = _errors_of_prompts(network, full=False)
            if not all(error <= allowed for _, error, allowed in claims):
                require_part_values(network)
            require(network, claims)
    except RuntimeError as error:
        mixed = in_several_dtypes(network.model)
        if not mixed:
            raise
        raise UnsupportedModelError(f"no sweeps through {network.loaded.name}{mixed}") from error


def self_check(network: DetachedNetwork) -> None:
    """Check a network at the last position of its first prompt, with two inputs' worth of random rows.

    Raises
    ------
    UnsupportedModelError
        Naming the first claim that fails and its error.
    """
    require(network, [*_errors(network), *_errors_of_prompts(network, full=True)])


@in_own_precision
def affine_defect(f: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return |f(a + b) − f(a) − f(b) + f(0)| for random inputs like x, (n, d), relative to the values' sizes.

    ``f`` maps (m, n, d) to (m, d_out).
    """
    a, b = random_inputs(x)
    fa, fb, fab, f0 = f(torch.stack([a, b, a + b, torch.zeros_like(x)]))
    return relative(fab - fa - fb + f0, fa, fb, fab, f0)


def random_inputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two random inputs of the shape of x, (n, d): one of its size and a large one (alike in float16)."""
    noise = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    size = float(x.double().square().mean().sqrt())
    large = 1.0 if x.dtype is torch.float16 else _LARGE
    a, b = (size * noise).to(x)
    return a, large * b


def _errors_of_prompts(network: DetachedNetwork, *, full: bool) -> list[tuple[str, float, float]]:
    """Return, for each prompt, the distances from the model's own pass, of the logits and of the reconstruction.

    In half precision rounding and near ties may grow through the blocks: then their modules are compared one by one. So
    are they wherever a whole may hide it that a foreign function computes something else, and in full checks of packed
    modules, which may lie further from products with their decoded weights than the model's own rounding.
    """
    allowed, whole = bar(network.dtype), own_pass_bar(network.dtype)
    foreign, packed = runs_foreign_functions(network.model), network.loaded.packing is not None
    part = own_parts_bar(network.dtype, foreign=foreign)
    claims = []
    for prompt, length in enumerate(network.lengths):
        rows = slice(network.start_of(prompt), network.start_of(prompt) + length)
        y, own = network.streams.output[rows], network.streams.model_output[rows]
        logits, theirs = network.read(Place("logits"), prompt, length - 1), network.streams.logits[prompt]
        of_prompt = f" on prompt {prompt}" if len(network.lengths) > 1 else ""
        off = relative(y - own, own)
        # Packed modules may compute something else than products with their decoded weights, by design or by mistake.
        if not packed:
            claims.append((f"its pass is not the model's own{of_prompt}", off, whole))
        hidden, apart = foreign and part < whole, off > part and (full or foreign or not packed)
        if (packed or off <= whole) and (hidden or apart):
            distances = distances_of_parts(network.model, network.family, network.prompts[prompt])
            claims += [(f"its {name} is not the model's own{of_prompt}", error, part) for name, error in distances]
        claims.append((f"its logits are not the model's{of_prompt}", relative(logits - theirs, theirs), allowed))
        J = network.jacobian((prompt, "joint"))
        Jx, r = J.matmat(J.x[:, None])[:, 0], J.offset
        claims.append((f"Σ J_i x_i + r is not the output{of_prompt}", relative(Jx + r - J.y, Jx, r, J.y), allowed))
    return claims


def _errors(network: DetachedNetwork) -> list[tuple[str, float, float]]:
    """Return what would be wrong, its error, and the largest error of a sound network."""
    J = network.jacobian("joint")
    x, y = J.x.view(J.tokens, -1), J.y
    a, _ = random_inputs(x)
    fx, fa, f0 = network.apply(torch.stack([x, a, torch.zeros_like(x)]))
    Ja = J.matmat(a.flatten()[:, None])[:, 0]
    u = random_inputs(y[None])[0][0]
    Jtu = J.rmatmat(u[:, None])[:, 0]
    inner = Ja.double() @ u.double() - a.flatten().double() @ Jtu.double()
    inner /= float(Ja.double().norm() * u.double().norm()) or 1.0
    middle = network.jacobian("joint", position=J.position // 2)
    part = network.apply(middle.x.view(1, middle.tokens, -1), position=middle.position)[0]
    allowed = bar(network.dtype)
    return [
        ("at the prompt it does not give the model's output", relative(fx - y, y), allowed),
        ("it is not affine", affine_defect(network.apply, x), allowed),
        ("its Jacobian is not its slope", relative(Ja - fa + f0, Ja, fa, f0), allowed),
        ("the transpose of its Jacobian is not", abs(float(inner)), allowed),
        ("later positions have a part in earlier ones", relative(part - middle.y, middle.y), allowed),
    ]

"""One ordinary forward pass, observed on a structural copy: everything that will be frozen, and the streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import DetjacError, ModelError, UnsupportedModelError, first_line, shortage
from detjac_lanczos.frozen.branch_check import require_branches
from detjac_lanczos.frozen.calls import Watch
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.observed import make_observable, observed_copy
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.precision import in_own_precision, lifted_to_float64, require_exact_products
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.structural_copy import structural_copy, tell_of_hooks
from detjac_lanczos.frozen.tape import Tape
from detjac_lanczos.frozen.words import Freeze, as_written
from detjac_lanczos.models.bitsandbytes import rounding_unsaid
from detjac_lanczos.models.dtypes import compute_dtype, in_several_dtypes
from detjac_lanczos.models.linear_modules import multiply_by_decoded_weights, multiply_fast
from detjac_lanczos.models.offloaded import execution_device


@dataclass(frozen=True, eq=False, repr=False)
class Streams:
    """Values of the nonlinear forward pass, all prompts one after another over N positions.

    ``embeddings``: (N, d_e), what the embedding layer gives; ``residual``: (N, d) entering each block, and one more
    after the last; ``output``: (N, d_out), what the decoder gives; ``logits``: (prompts, vocabulary) at the last
    position of each prompt. ``model_output`` is `output` as the caller's own model computes it, with its own attention
    and roundings; its 4-bit modules alone are run from our decoded rows, since they would decode whole matrices.
    """

    embeddings: Tensor
    residual: tuple[Tensor, ...]
    output: Tensor
    logits: Tensor
    model_output: Tensor

    def __repr__(self) -> str:
        """One line: how many positions and blocks, and the width between these."""
        positions, width = self.residual[0].shape
        return f"Streams(positions={positions}, blocks={len(self.residual) - 1}, hidden size={width})"


@in_own_precision
def capture(
    model: nn.Module, family: Family, prompts: Sequence[Prompt], freeze: Freeze, plan: Plan | None = None
) -> tuple[dict[str, Tensor], Streams]:
    """Run every prompt once, unpadded, and record the frozen factors.

    Parameters
    ----------
    model : transformers model; never written to
    family : Family
    prompts : sequence of Prompt
    freeze : {"gate", "up", "half"}
    plan : Plan, optional
        Where coefficients lie, and which are recorded as what they can be made from again; by default all are kept.

    Returns
    -------
    coefficients : dict of str to Tensor
        "blocks.3.input_layernorm.rstd": (N,), "blocks.3.mlp.gate_proj.activation": (N, f) and so on over all N
        positions; "blocks.3.self_attn.mixing.0": (heads, n, n), one per prompt. float32 at least. Where they are to be
        made again, the tensors of `RebuiltRows` and `RebuiltMixing` under those names.
    streams : Streams
    """
    first = next(model.parameters())
    require_exact_products(first.dtype, first.device)
    tell_of_hooks(model)
    twin = structural_copy(model)
    multiply_by_decoded_weights(twin, four_bits_only=True)
    decoder, blocks = family.decoder_of(twin), family.blocks_of(twin)
    if not len(blocks):
        raise ModelError(f"{type(model).__name__} has no blocks, and nothing to freeze; give a model with one or more")
    streams, ends = Watch(), Watch()
    _run_as_it_is(twin, decoder, prompts, streams)
    make_observable(twin)
    multiply_fast(twin)
    tape = Tape(plan, [prompt.length for prompt in prompts])
    _record_factors(family, decoder, blocks, tape, freeze)
    _watch_streams(twin, decoder, blocks, streams)
    _watch_branches(family, blocks, ends)
    logits = _run_all(twin, prompts, tape)
    for i in range(len(blocks) + 1):
        if streams.calls(f"residual.{i}") != len(prompts):
            raise UnsupportedModelError(
                f"block {min(i, len(blocks) - 1)} of {type(model).__name__} does not run once in a pass; a model that "
                "skips or repeats its blocks, by its configuration or by hand, is not served"
            )
    found = _streams(streams, prompts, len(blocks), logits)
    if not all(torch.isfinite(rows).all() for rows in (found.output, found.model_output)):
        raise ModelError("the model's output is not finite on this prompt; check its weights and dtype (try float32)")
    last = torch.tensor([prompt.length for prompt in prompts], device=logits.device).cumsum(0).sub(1)
    require_branches(family, blocks, ends.rows, [stream[last] for stream in found.residual])
    return tape.coefficients(), found


def _run_as_it_is(twin: Any, decoder: nn.Module, prompts: Sequence[Prompt], streams: Watch) -> None:
    """Watch the output of the model's own pass, before anything is observed: what the observed one is held against."""
    with streams.leaving(decoder, "model_output"):
        for prompt in prompts:
            run_prompt(twin, prompt)


def _record_factors(
    family: Family, decoder: nn.Module, blocks: Sequence[nn.Module], tape: Tape, freeze: Freeze
) -> None:
    """Have the words of a family record what they freeze."""
    for words, module, name in (
        (family.entry, decoder, "entry."),
        *((family.block_words, block, f"blocks.{index}.") for index, block in enumerate(blocks)),
        (family.tail, decoder, "final."),
    ):
        for word in words:
            with family.fits(name, as_written(word)):
                word.observe(module, name, tape, freeze)


def _watch_streams(twin: Any, decoder: nn.Module, blocks: Sequence[nn.Module], streams: Watch) -> None:
    for index, block in enumerate(blocks):
        streams.entering(block, f"residual.{index}")
    streams.leaving(blocks[-1], f"residual.{len(blocks)}")
    streams.leaving(decoder, "output")
    streams.leaving(twin.get_input_embeddings(), "embeddings")


def _watch_branches(family: Family, blocks: Sequence[nn.Module], ends: Watch) -> None:
    """Watch the last row of every branch."""
    for index, block in enumerate(blocks):
        for branch in family.branches:
            with family.fits(f"blocks.{index}", f"output={branch.output!r}"):
                ends.leaving(block.get_submodule(branch.output), f"{branch.role}.{index}", slice(-1, None))


def _streams(watched: Watch, prompts: Sequence[Prompt], blocks: int, logits: Tensor) -> Streams:
    """Return what was watched, all prompts one after another, on the device of the logits."""
    if not watched.calls("embeddings"):
        watched.rows["embeddings"] = [p.embeds.to(logits) for p in prompts if p.embeds is not None]
    found = {name: rows.to(logits.device) for name, rows in watched.taken()}
    residual = tuple(found.pop(f"residual.{i}") for i in range(blocks + 1))
    return Streams(residual=residual, logits=logits, **found)


@in_own_precision
def watch_branches(
    model: nn.Module, family: Family, prompts: Sequence[Prompt], see: Callable[[int, dict[str, Tensor]], None]
) -> Tensor:
    """Run every prompt again, and show what the branches of a block add to the stream as soon as the block ends.

    The branches of all blocks would be the largest streams; one more pass is cheaper than to keep them.

    Parameters
    ----------
    model, family, prompts
        As in `capture`.
    see : callable
        Given the index of a block and its branches by role, (n, d).

    Returns
    -------
    Tensor, shape (prompts, vocabulary)
        The logits at the last position of each prompt.
    """
    twin = observed_copy(model)
    multiply_fast(twin)
    watch = Watch()

    def show(index: int, block: nn.Module) -> None:
        see(index, {role: rows * family.branch(role).factor(block) for role, rows in watch.taken()})

    with ExitStack() as hooks:
        for index, block in enumerate(family.blocks_of(twin)):
            for branch in family.branches:
                watch.leaving(block.get_submodule(branch.output), branch.role)
            # Removed at the end: it holds what `see` does, and a model is part of cycles of its own.
            hooks.enter_context(block.register_forward_hook(lambda block, *_, index=index: show(index, block)))
        return _run_all(twin, prompts, Tape(None, [prompt.length for prompt in prompts]))


@in_own_precision
def own_logits(model: nn.Module, prompts: Sequence[Prompt]) -> Tensor:
    """Run every prompt again, and return the logits of `watch_branches`."""
    twin = observed_copy(model)
    multiply_fast(twin)
    return _run_all(twin, prompts, Tape(None, [prompt.length for prompt in prompts]))


def branch_values(
    model: nn.Module, family: Family, prompts: Sequence[Prompt], role: str, index: int
) -> tuple[Tensor, Tensor]:
    """Run every prompt again; return one branch before its residual add, (N, d), and the logits of `watch_branches`."""
    found = []

    def keep(block: int, branches: dict[str, Tensor]) -> None:
        if block == index:
            found.append(branches[role])

    logits = watch_branches(model, family, prompts, keep)
    return torch.cat(found), logits


def _run_all(twin: Any, prompts: Sequence[Prompt], tape: Tape) -> Tensor:
    """Run every prompt in the model's working precision; return the last logits, (prompts, vocabulary)."""

    def run() -> Tensor:
        logits = []
        for prompt in prompts:
            logits.append(run_prompt(twin, prompt))
            tape.next_prompt()
        return torch.cat(logits)

    return lifted_to_float64(run) if compute_dtype(twin) is torch.float64 else run()


def run_prompt(model: Any, prompt: Prompt) -> Tensor:
    """Run one prompt alone; return the logits of its last position, (1, vocabulary)."""
    device = execution_device(model)
    inputs: dict[str, Tensor]
    if prompt.embeds is None:
        inputs = {"input_ids": torch.tensor([prompt.ids], device=device)}
    else:
        # A copy: some models scale what they are given in place.
        inputs = {"inputs_embeds": prompt.embeds[None].to(device, compute_dtype(model), copy=True)}
    logits: Tensor = own_pass(model, **inputs, **prompt.places(device), use_cache=False, logits_to_keep=1)[:, -1]
    return logits.to(device)


def own_pass(model: Any, **arguments: Any) -> Tensor:
    """Return the logits of a model's forward pass, with what goes wrong in it said in one line.

    Raises
    ------
    ModelError
        If the pass fails; where memory runs out, it is torch's own error.
    """
    try:
        with rounding_unsaid():
            logits: Tensor = model(**arguments).logits
    except DetjacError:
        raise
    except Exception as error:
        if shortage(error):
            raise
        if isinstance(error, NotImplementedError) and "meta tensor" in str(error):
            raise UnsupportedModelError(
                f"{type(model).__name__} does not run with its weights offloaded by accelerate; keep them in memory"
            ) from error
        raise ModelError(
            f"the forward pass of {type(model).__name__} fails ({first_line(error)}){in_several_dtypes(model)}"
        ) from error
    return logits

"""The model's own modules between a source and a target, run on a structural copy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import ModelError
from detjac_lanczos.frozen.calls import leaving
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.observed import observed_copy
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.precision import lifted_to_float64
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.saved_weights import forget_gradients
from detjac_lanczos.models.unmoved import Unmoved, weights_in_use


class Passes:
    """Forward passes from any source to any target, in reach of automatic differentiation.

    The copy runs observed attention and eager experts, whose operations can be differentiated forwards too. One pass at
    a time has its turn: what hooks an interrupt leaves of another one do nothing.

    Raises
    ------
    ModelError
        If the weights cannot be differentiated through.
    """

    def __init__(self, model: nn.Module, family: Family, prompts: Sequence[Prompt]) -> None:
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise ModelError("the weights were made in torch.inference_mode(): load the model outside of it")
        self.model = without_adapters(observed_copy(model))
        forget_gradients(self.model)
        self._weights = Unmoved(type(self.model).__name__, weights_in_use(self.model))
        self.family, self.prompts = family, tuple(prompts)
        self.decoder, self.blocks = family.decoder_of(self.model), family.blocks_of(self.model)
        self.double = compute_dtype(self.model) is torch.float64
        self._turn: object = None

    def run(self, x: Tensor, embeddings: Tensor, source: int, target: Place, prompt: int, position: int) -> Tensor:
        """Run copies of a prompt with ``x`` in place of what enters at the source.

        Parameters
        ----------
        x : Tensor, shape (b, n, d)
        embeddings : Tensor, shape (n, d_e)
            What the embedding layer gives for the prompt; ``x`` itself takes its place where the source is −1.
        source : int
            −1 for the embeddings, or the block that the stream enters.
        target : Place
        prompt, position : int

        Returns
        -------
        Tensor, shape (b, d_out)
            Where the target is a probe, the output that it reads.

        Raises
        ------
        ModelError
            If the model's weights have moved since the copy was made.
        """
        self._weights.require()
        x = x.clone()  # what enters a model is the model's own: some scale it in place
        inputs = x if source < 0 else embeddings.repeat(len(x), 1, 1)
        places = self.prompts[prompt].places(x.device, copies=len(x))
        end, factor = self.end(target)
        self._turn = turn = object()

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            if self._turn is not turn:
                return None
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        def leave(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if self._turn is not turn:
                return
            row = leaving(out).reshape(*x.shape[:2], -1)[:, position]
            if target.kind != "logits":
                raise _Reached(factor * row)
            out.last_hidden_state = row[:, None]

        def logits_of_all() -> Tensor:
            logits: Tensor = self.model(inputs_embeds=inputs, **places, use_cache=False).logits
            return logits

        with ExitStack() as stack:
            if source >= 0:
                stack.enter_context(self.blocks[source].register_forward_pre_hook(enter, with_kwargs=True))
            stack.enter_context(end.register_forward_hook(leave))
            try:
                logits = lifted_to_float64(logits_of_all) if self.double else logits_of_all()
            except _Reached as reached:
                return reached.value.to(x.device)
        return logits[:, 0].to(x.device)

    def end(self, target: Place) -> tuple[nn.Module, float]:
        """Return the module whose output is the target, and what multiplies it.

        Raises
        ------
        InputError
            If the target is a branch, and it is not known where blocks of this kind have theirs.
        """
        match target.kind:
            case "layer" | "residual":
                return self.blocks[-1 if target.index is None else target.index], 1.0
            case "attention" | "mlp":
                block = self.blocks[target.index]
                branch = self.family.branch(target.kind)
                return block.get_submodule(branch.output), branch.factor(block)
        return self.decoder, 1.0


class _Reached(Exception):
    """The target has its value; nothing behind it needs to run."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

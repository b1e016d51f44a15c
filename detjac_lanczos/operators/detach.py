"""`detach`: from a model and a prompt to the detached network and its Jacobians."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.capture import capture
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.network import FrozenNetwork
from detjac_lanczos.frozen.places import Place, source_block, target_place
from detjac_lanczos.frozen.prompt import decode, read_prompts
from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.operators.autograd import AutogradSweeps
from detjac_lanczos.operators.jacobian import DetachedJacobian, Jacobian, JacobianBatch, OrdinaryJacobian
from detjac_lanczos.operators.passes import Passes
from detjac_lanczos.operators.reconstruction import Reconstruction
from detjac_lanczos.operators.sweeps import FrozenSweeps, Sweeps

Token = int | tuple[int, int]


def detach(
    model: LoadedModel | tuple[Any, Any] | str,
    prompt: str | Sequence[str] | None = None,
    *,
    freeze: Freeze = "gate",
    chat: bool = False,
    add_special_tokens: bool = True,
    input_ids: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    inputs_embeds: Tensor | Sequence[Tensor] | None = None,
    attention_mask: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    position_ids: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
) -> DetachedNetwork:
    """Run a model once on a prompt and freeze its norms, gates and attention weights at the values they take there.

    Parameters
    ----------
    model : LoadedModel, (model, tokenizer), or anything `load_model` takes
        Never written to; the pass runs on a structural copy that shares every tensor.
    prompt : str or list of str
        A list gives one network whose tokens are addressed as (prompt, token).
    freeze : {"gate", "up", "half"}
        Which factor of a gated MLP act(Wx) ∘ (Zx) is frozen: the activation (the paper's equations), the linear
        factor, or the mean of both maps. Each reproduces y exactly.
    chat : bool
        Put the prompt through the tokenizer's chat template.
    add_special_tokens : bool
    input_ids : integers of shape (positions,) or (prompts, positions), or one list per prompt, optional
        In place of a prompt.
    inputs_embeds : Tensor, shape (positions, d) or (prompts, positions, d), or one tensor per prompt, optional
        In place of a prompt: what the embedding layer would give, of width d.
    attention_mask : integers, shape of input_ids, optional
        1 for a real token, 0 for padding, on the left or on the right. Padding is taken off: each prompt runs alone,
        with what the padded pass computes for it, and **token indices count its real tokens**, from 0.
    position_ids : integers of shape (positions,), or the shape of input_ids, optional
        Where tokens stand, padding included. By default 0, 1, 2, ... over the padded row (OPT: over its real tokens),
        as in transformers. They place tokens and part nothing: give packed sequences as prompts of their own.

    Returns
    -------
    DetachedNetwork

    Raises
    ------
    InputError
        If the prompt is empty, too long or of the wrong kind, or its mask or positions do not fit.
    UnsupportedModelError
        If the model's family has no declaration, or its weights are not plain dense matrices.
    ModelError
        If the forward pass is not finite.

    References
    ----------
    J. Golden, "Large Language Models are Locally Linear Mappings", 2025.
    """
    loaded = (
        model
        if isinstance(model, LoadedModel)
        else load_model(*model)
        if isinstance(model, tuple)
        else load_model(model)
    )
    if freeze not in ("gate", "up", "half"):
        raise InputError(f"freeze must be 'gate', 'up' or 'half', not {freeze!r}")
    family = family_of(loaded.model)
    prompts = read_prompts(
        loaded,
        prompt,
        chat=chat,
        add_special_tokens=add_special_tokens,
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        positions_from_mask=family.positions_from_mask,
    )
    coefficients, streams = capture(loaded.model, family, prompts, freeze)
    return DetachedNetwork.from_capture(loaded, family, prompts, freeze, coefficients, streams)


@dataclass(frozen=True)
class Candidate:
    """A next token: its text, id and probability."""

    token: str
    id: int
    probability: float


class DetachedNetwork(FrozenNetwork):
    """A frozen network that gives its Jacobians; see `detach`."""

    route = "frozen"
    """How products are computed: through the maps of the "frozen" network, or by "autograd"."""

    def sweeps(self, source: int, target: Place) -> Sweeps:
        """Return the products of the frozen network between two places; errors as in `program`."""
        return FrozenSweeps(self.program(source, target), self.lengths, self.device)

    def ordinary_sweeps(self, source: int, target: Place) -> Sweeps:
        """Return the products of the model between two places, nothing frozen; errors as in `program`."""
        return AutogradSweeps(self._ordinary_passes, self, source, target)

    @cached_property
    def _ordinary_passes(self) -> Passes:
        return Passes(self.model, self.family)

    @cached_property
    def predictions(self) -> list[list[Candidate]]:
        """What the model says next after each prompt, most probable first (ten candidates)."""
        found = []
        for logits in self.streams.logits:
            probabilities = torch.softmax(logits.double(), dim=-1)
            top = probabilities.topk(min(10, len(probabilities)))
            found.append(
                [
                    Candidate(decode(self.loaded, int(i)), int(i), float(p))
                    for p, i in zip(top.values, top.indices, strict=True)
                ]
            )
        return found

    @property
    def prediction(self) -> list[Candidate]:
        """What the model says next after the (first) prompt."""
        return self.predictions[0]

    @cached_property
    def reconstruction(self) -> Reconstruction:
        """How well Σ J_i x_i + offset gives y at the last position of the (first) prompt."""
        return self.jacobian(token=0).reconstruction

    def jacobian(
        self,
        token: int | tuple[int, int | str] | str = 0,
        *,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
        frozen: bool = True,
    ) -> Jacobian:
        """Return the Jacobian of one token, or of all tokens side by side.

        Parameters
        ----------
        token : int, (prompt, token), "joint" or (prompt, "joint")
        source : "embeddings" or layer(l)
        target : "output", "residual", "logits", layer(l), attention(l), mlp(l) or probe(W)
        position : int
            Row of the output.
        frozen : bool
            If False, the ordinary Jacobian of the model, nothing frozen, by automatic differentiation.

        Raises
        ------
        InputError
            If the token, position, source or target does not exist, or the token comes after the position.
        """
        prompt, which = token if isinstance(token, tuple) else (0, token)
        prompt = self._prompt(prompt)
        place, block = target_place(target, self.blocks), source_block(source, self.blocks)
        end = self._position(prompt, position, "position")
        kind = DetachedJacobian if frozen else OrdinaryJacobian
        if which == "joint":
            return kind(self, block, place, prompt, None, end)
        if not isinstance(which, int):
            raise InputError(f"token must be an index, (prompt, index) or 'joint', not {which!r}")
        start = self._position(prompt, which, "token")
        if start > end:
            raise InputError(f"token {start} comes after position {end}: its Jacobian is zero; choose a later position")
        return kind(self, block, place, prompt, start, end)

    def jacobians(
        self,
        tokens: slice | Iterable[Token] | None = None,
        *,
        source: str | Place = "embeddings",
        target: str | Place = "output",
        position: int = -1,
        frozen: bool = True,
    ) -> JacobianBatch:
        """Return the Jacobians of several tokens for lockstep.

        Parameters
        ----------
        tokens : slice, or list of indices or (prompt, token); all tokens of all prompts by default
            A slice applies to every prompt.
        source, target, position, frozen
            As in `jacobian`.
        """
        if tokens is None or isinstance(tokens, slice):
            ends = [self._position(p, position, "position") for p in range(len(self.prompts))]
            chosen: list[Token] = [
                (p, i)
                for p, n in enumerate(self.lengths)
                for i in range(*(tokens or slice(None)).indices(n))
                if i <= ends[p]
            ]
        else:
            chosen = list(tokens)
        if not chosen:
            raise InputError("no tokens are selected; choose at least one")
        return JacobianBatch(
            [self.jacobian(t, source=source, target=target, position=position, frozen=frozen) for t in chosen]
        )

    def _prompt(self, prompt: int) -> int:
        if not 0 <= prompt < len(self.prompts):
            raise InputError(f"prompt {prompt} does not exist; there are {len(self.prompts)}")
        return prompt

    def _position(self, prompt: int, index: int, what: str) -> int:
        n = self.lengths[prompt]
        if not isinstance(index, int) or not -n <= index < n:
            raise InputError(f"{what} {index} does not exist; the prompt has {n} tokens, 0..{n - 1}")
        return index % n

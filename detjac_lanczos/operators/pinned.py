"""The detached network of a decoder that no family declares: its own modules with every frozen factor pinned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import DetjacError, InputError, UnsupportedModelError, first_line
from detjac_lanczos.frozen.capture import capture
from detjac_lanczos.frozen.declare import Family, Residual
from detjac_lanczos.frozen.drop import Expert, Head
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.said import Kinds
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.structure import Structure
from detjac_lanczos.frozen.sweep import Program
from detjac_lanczos.frozen.words import ActivatedMLP, Attend, Freeze, GatedMLP, LayerNorm, RMSNorm
from detjac_lanczos.models import LoadedModel
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.loaded import ModelLike
from detjac_lanczos.operators.autograd import AutogradSweeps
from detjac_lanczos.operators.bars import bar
from detjac_lanczos.operators.network import DetachedNetwork
from detjac_lanczos.operators.passes import Passes
from detjac_lanczos.operators.pins import Pins, pin
from detjac_lanczos.operators.self_check import affine_defect
from detjac_lanczos.operators.trace import Trace, same

_OUTPUT = Place("output")


class PinnedPasses(Passes):
    """Passes of a copy whose frozen factors are those of its prompts, whatever runs through it."""

    @in_own_precision
    def __init__(
        self,
        model: nn.Module,
        family: Family,
        prompts: Sequence[Prompt],
        structure: Structure,
        freeze: Freeze,
        embeddings: Sequence[Tensor],
    ) -> None:
        super().__init__(model, family, prompts)
        self.structure, self.pins, self.trace = structure, Pins(), Trace(self.model, structure)
        self.trace.during(lambda: self._observe(0, embeddings[0]))
        pin(self.model, structure, self.trace, freeze, self.pins)
        for prompt, rows in enumerate(embeddings):
            self.pins.begin(prompt, recording=True)
            self._observe(prompt, rows)

    def run(self, x: Tensor, embeddings: Tensor, source: int, target: Place, prompt: int, position: int) -> Tensor:
        """Run copies of a prompt with ``x``, (b, n, d), in place of what enters at the source: (b, d_out)."""
        self.pins.begin(prompt, recording=False)
        return super().run(x, embeddings, source, target, prompt, position)

    def _observe(self, prompt: int, embeddings: Tensor) -> None:
        try:
            super().run(embeddings[None], embeddings, -1, _OUTPUT, prompt, 0)
        except DetjacError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} runs on tokens, and not on inputs_embeds ({first_line(error)})"
            ) from error


class PinnedSweeps(AutogradSweeps):
    """Sweeps through pinned modules: an affine map, whose derivative is the same everywhere."""

    passes: PinnedPasses

    @torch.inference_mode(False)
    @in_own_precision
    def affine(self, segment: Segment, rows: Tensor) -> Tensor:
        """Return the map itself at joint source rows, (length · width, d_in): (width, d_out)."""
        return self.values(segment.prompt, segment.position, self._inputs(segment, rows))


@dataclass(frozen=True, eq=False, repr=False)
class PinnedNetwork(DetachedNetwork):
    """A network that runs the model's own modules, recognised by their structure, with every frozen factor pinned.

    Made by `detach` where no family is declared; products go through automatic differentiation.

    Attributes
    ----------
    passes : PinnedPasses
        Passes through the pinned modules; all other attributes are as in `DetachedNetwork`.
    """

    passes: PinnedPasses = field(kw_only=True)
    route = PinnedSweeps.route

    @property
    def plan(self) -> Plan:
        """There is none: what is pinned is kept.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError("memory is planned for declared families only; everything that is pinned here is kept")

    @classmethod
    def attach(
        cls, loaded: LoadedModel, structure: Structure, prompts: tuple[Prompt, ...], freeze: Freeze
    ) -> PinnedNetwork:
        """Run the prompts and pin what is frozen; `detach` does that, and checks the network.

        Parameters
        ----------
        loaded : LoadedModel
        structure : Structure
            What was recognised of its modules.
        prompts : tuple of Prompt
        freeze : {"gate", "up", "half"}

        Returns
        -------
        PinnedNetwork

        Raises
        ------
        UnsupportedModelError
            If a norm or an MLP is none by its values.
        ModelError
            If the forward pass is not finite.
        """
        kind = type(without_adapters(loaded.model)).__name__
        family = Family(
            name=f"{kind}, by its structure",
            classes=(kind,),
            block=(),
            tail=(),
            decoder=structure.decoder,
            blocks=structure.blocks,
            input_definition="what the embedding layer gives",
        )
        _, streams = capture(loaded.model, family, prompts, freeze)
        embeddings = streams.embeddings.split([prompt.length for prompt in prompts])
        passes = PinnedPasses(loaded.model, family, prompts, structure, freeze, embeddings)
        if passes.trace.branches is not None:
            attention, mlp = passes.trace.branches
            stages = ((Residual("attention", (), output=attention),), (Residual("mlp", (), output=mlp),))
            passes.family = family = replace(family, block=stages)
        return cls(loaded, family, prompts, freeze, passes.pins.named(), streams, passes=passes)

    def __repr__(self) -> str:
        """One line: model, family, prompts, what is frozen and how products are computed."""
        return f"{super().__repr__()[:-1]}, route={self.route!r})"

    def _sweeps(self, source: int, target: Place) -> PinnedSweeps:
        """Return the products of the pinned modules between two places."""
        if target.kind == "logits" and not self._logits_are_affine:
            raise UnsupportedModelError(f"the logits of {self.family.name} are no affine function of its output")
        return PinnedSweeps(self.passes, self, source, target)

    def offset(self, source: int, target: Place, prompt: int, position: int) -> Tensor:
        """Return the affine part r of y = Σ J_i x_i + r, the pinned modules at zero: (d_out,)."""
        sweeps = self._sweeps(source, target)
        segment = Segment(prompt, 0, position, 1, joint=True)
        zero = torch.zeros(segment.rows, sweeps.d_in, dtype=self.dtype, device=self.device)
        return sweeps.affine(segment, zero)[0]

    @in_own_precision
    def read(self, target: Place, prompt: int, position: int) -> Tensor:
        """Return the logits of the model itself, or a probe of its output, at a position of a prompt: (d_out,)."""
        if target.kind == "logits":
            return self._ordinary_sweeps(-1, target).values(prompt, position, self.inputs(-1, prompt)[None])[0]
        return super().read(target, prompt, position)

    @property
    def frozen_kinds(self) -> Kinds:
        """The kinds of words that a family file would have for what is pinned."""
        norms = {LayerNorm if norm.centred else RMSNorm for norm in self.passes.trace.norms.values()}
        mlps = {ActivatedMLP if mlp.u is None else GatedMLP for mlp in self.passes.trace.mlps.values()}
        return {Attend, *norms, *mlps}

    @property
    def tail_words(self) -> str:
        """What lies between the last block and the output; empty where nothing does."""
        try:
            return "the final norm" if self.tail.branches[0].chain else ""
        except UnsupportedModelError:
            return "what follows the last block"

    @property
    def tail(self) -> Stage:
        """From the last block to the output: the final norm, frozen, or nothing.

        Raises
        ------
        UnsupportedModelError
            If something else than a norm lies there.
        """
        x, y = self.streams.residual[-1], self.streams.output
        if same(x, y):
            return Stage((Branch("output", ()),), residual=False, block=self.blocks)
        for norm in self.passes.trace.final:
            if x.shape == y.shape and same(norm.frozen(x, norm.reciprocal(x)), y):
                return Stage((Branch("output", tuple(norm.maps(x))),), residual=False, block=self.blocks)
        raise UnsupportedModelError(
            f"between the last block of {self.family.name} and its output lies more than a norm; target the output"
        )

    def program(self, source: int, target: Place) -> Program:
        """Refuse: there are no maps of a recognised decoder, its modules are run.

        Raises
        ------
        UnsupportedModelError
            Always.
        """
        raise UnsupportedModelError(f"{self.family.name} runs through its own modules and has no program of maps")

    def replace(
        self,
        coefficients: Mapping[str, Tensor] | None = None,
        *,
        drop: Head | Expert | Place | Iterable[Head | Expert | Place] = (),
    ) -> Self:
        """Refuse: nothing can be switched off in a recognised decoder.

        Raises
        ------
        UnsupportedModelError
            Always.
        """
        raise UnsupportedModelError(f"nothing can be replaced or dropped in {self.family.name}: no family declares it")

    def save(self, path: str | Path) -> Path:
        """Refuse: a recognised decoder is pinned again by `detach`.

        Raises
        ------
        UnsupportedModelError
            Always.
        """
        raise UnsupportedModelError(f"{self.family.name} cannot be saved: no family declares it; detach it again")

    @property
    def _elsewhere(self) -> str:
        return "detach in the other process"

    @classmethod
    def load(cls, path: str | Path, model: ModelLike) -> Self:
        """Refuse: no file holds a recognised decoder.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(f"{cls.__name__}.load reads nothing: what is pinned is never saved; use DetachedNetwork.load")

    @cached_property
    def _logits_are_affine(self) -> bool:
        n = self.lengths[0]
        sweeps = PinnedSweeps(self.passes, self, -1, Place("logits"))

        def logits(X: Tensor) -> Tensor:
            return sweeps.affine(Segment(0, 0, n - 1, len(X), joint=True), X.transpose(0, 1).flatten(0, 1))

        return affine_defect(logits, self.inputs(-1, 0)) <= bar(self.dtype)

"""The detached network of one or several prompts: frozen factors, streams, and the stages they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from detjac_lanczos.frozen.assembly import assemble
from detjac_lanczos.frozen.capture import Streams
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.drop import Expert, Head, named_parts, replaced, switch_off
from detjac_lanczos.frozen.fold import fold, scale_factors
from detjac_lanczos.frozen.hooks_on_all import HooksOnAll
from detjac_lanczos.frozen.mapped import let_go
from detjac_lanczos.frozen.own_weights import OwnWeights
from detjac_lanczos.frozen.places import Place, target_place
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.frozen.shared import Shared
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.models import LoadedModel


@dataclass(frozen=True, eq=False, repr=False)
class FrozenNetwork(Shared):
    """Everything nonlinear of a forward pass as constant coefficients, beside the model's own weights.

    Attributes
    ----------
    loaded : LoadedModel
        The caller's model; its tensors are used in place and never written to.
    family : Family
        The declaration that was followed.
    prompts : tuple of Prompt
    freeze : {"gate", "up", "half"}
        Which factor of a gated MLP is frozen.
    coefficients : mapping of str to Tensor
        Frozen factors by name, read-only; gates and mixing matrices hold the row scales that folding moved into them.
    streams : Streams
        Values of the nonlinear forward pass.
    dropped : frozenset of str
        What `replace` switched off: "head.3.1", "expert.2.7", "attention.3"; a branch leaves with its biases.
    changed : frozenset of str
        Coefficients that `replace` was given values of.
    planned : Plan, optional
        Where the coefficients were put under a budget of memory; see `plan`.
    own_weights : OwnWeights
        What its maps are made of, and which weights were found then; what `replace` gives has the same.
    hooks : HooksOnAll
        The hooks on all modules that had a part in its pass.
    """

    loaded: LoadedModel
    family: Family
    prompts: tuple[Prompt, ...]
    freeze: Freeze
    coefficients: Mapping[str, Tensor]
    streams: Streams
    dropped: frozenset[str] = frozenset()
    planned: Plan | None = None
    changed: frozenset[str] = frozenset()
    own_weights: OwnWeights = field(default_factory=OwnWeights)
    hooks: HooksOnAll = field(default_factory=HooksOnAll)

    def __post_init__(self) -> None:
        """Make the coefficients read-only, and look at the model as it is."""
        object.__setattr__(self, "coefficients", MappingProxyType(dict(self.coefficients)))
        self.own_weights.begin(self.loaded)

    def __repr__(self) -> str:
        """One line: model, family, prompts and what is frozen."""
        dtype = str(self.dtype).removeprefix("torch.")
        without = f", without {named_parts(sorted(self.dropped))}" if self.dropped else ""
        tokens = f"({named_parts([*map(str, self.lengths)])})" if len(self.prompts) > 1 else self.lengths
        return (
            f"{type(self).__name__}({self.loaded.name!r}, family={self.family.name!r}, tokens={tokens}, "
            f"freeze={self.freeze!r}, {dtype}{without})"
        )

    @classmethod
    def from_capture(
        cls,
        loaded: LoadedModel,
        family: Family,
        prompts: tuple[Prompt, ...],
        freeze: Freeze,
        coefficients: Mapping[str, Tensor],
        streams: Streams,
        planned: Plan | None,
    ) -> Self:
        """Fold freshly captured coefficients (in place) and return their network.

        Parameters
        ----------
        loaded, family, prompts, freeze, coefficients, streams, planned
            The attributes, with coefficients that are not folded yet.

        Returns
        -------
        Self
        """
        network = cls(loaded, family, prompts, freeze, coefficients, streams, planned=planned)
        for stage in network._unfolded_stages:
            for branch in stage.branches:
                scale_factors(branch.chain, network.lengths)
            let_go(stage.mapped)
        return network

    @property
    def altered(self) -> bool:
        """Whether `replace` changed anything: the model's own pass then says nothing of this network.

        It has values of its own.
        """
        return bool(self.dropped or self.changed)

    @property
    def plan(self) -> Plan:
        """What is kept in memory, what lies elsewhere, and what is made again in every sweep."""
        return self.planned or make_plan(self.family.shape(self.model_of_pass, self.freeze), self.lengths, None)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.loaded.model

    @property
    def model_of_pass(self) -> Any:
        """The model with the configuration and the numbers of its pass, whatever is set in it since; never to be run.

        Its tensors are the model's own.
        """
        return self.own_weights.model

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Positions of each prompt."""
        return tuple(prompt.length for prompt in self.prompts)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each prompt in the streams."""
        return tuple(accumulate(self.lengths[:-1], initial=0))

    @property
    def dtype(self) -> torch.dtype:
        """Working precision of the sweeps: that of the pass, whatever the model is converted to later."""
        return self.streams.embeddings.dtype

    @property
    def device(self) -> torch.device:
        """Device of the rows between sweeps: that of the pass."""
        return self.streams.output.device

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.streams.residual) - 1

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.streams.residual[0].shape[1]

    @property
    def output_size(self) -> int:
        """Width of the output."""
        return self.streams.output.shape[1]

    def width_at(self, target: str | Place) -> int:
        """Return the width d_out of a target.

        Parameters
        ----------
        target : str or Place
            As in `DetachedNetwork.jacobian`.

        Returns
        -------
        int
            Of a probe the number of its rows.

        Raises
        ------
        InputError
            If there is no such target.
        """
        place = target_place(target, self.blocks)
        widths = {"output": self.output_size, "logits": self.streams.logits.shape[1]}
        return widths.get(place.kind, self.hidden_size) if place.rows is None else place.rows.shape[0]

    def start_of(self, prompt: int) -> int:
        """Return the first row of a prompt in the streams."""
        return self.starts[prompt]

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Folded stages in order: the entry (block −1), the blocks, the tail (block L)."""
        self.own_weights.require_model()
        stages = tuple(
            replace(
                stage,
                branches=tuple(Branch(branch.name, fold(branch.chain)) for branch in stage.branches),
            )
            for stage in self._unfolded_stages
        )
        chains = (branch.chain for stage in stages for branch in stage.branches)
        self.own_weights.join("stages", chain.from_iterable(chains))
        return stages

    @property
    def tail(self) -> Stage:
        """From the last block to the output: the final norm."""
        return self.stages[-1]

    @property
    def _unfolded_stages(self) -> Iterator[Stage]:
        model, coefficients = self.model_of_pass, self.coefficients
        for stage in assemble(self.family, model, coefficients, self.freeze, self.dropped, self.streams):
            yield stage.brought()

    def replace(
        self,
        coefficients: Mapping[str, Tensor] | None = None,
        *,
        drop: Head | Expert | Place | Iterable[Head | Expert | Place] = (),
    ) -> Self:
        """Return a new network with some coefficients changed; this one stays as it is.

        Parameters
        ----------
        coefficients : mapping of str to Tensor, optional
            New values by name, of the shape of the old; copied.
        drop : iterable of `head`, `expert` and branch places
            Attention heads (``head(3, 1)``), routed experts (``expert(2, 7)``) and branches (``attention(3)``,
            ``mlp(5)``) to switch off; what remains is frozen as it was, routing included.

        Returns
        -------
        Self

        Raises
        ------
        InputError
            If a name does not exist, a shape differs, a head or branch does not exist, or no token of the prompt goes
            to an expert: it has no part in this network.
        ModelError
            If the model's weights or adapters have changed since the pass; its numbers are those of the pass.
        """
        self.own_weights.require_model()
        given = coefficients or {}
        found = replaced(self.coefficients, given)
        off = tuple(drop) if isinstance(drop, Iterable) and not isinstance(drop, str) else (drop,)
        dropped = self.dropped.union([switch_off(found, item, self.blocks) for item in off])
        return replace(self, coefficients=found, dropped=dropped, changed=self.changed.union(given))

"""The detached network of one or several prompts: frozen factors, streams, and programs between any two places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from detjac_lanczos.frozen import store
from detjac_lanczos.frozen.assembly import assemble
from detjac_lanczos.frozen.capture import Streams, branch_values
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.drop import Expert, Head, name_of, replaced, switch_off
from detjac_lanczos.frozen.fold import fold
from detjac_lanczos.frozen.layout import Layout, Segment
from detjac_lanczos.frozen.mapped import let_go
from detjac_lanczos.frozen.maps import apply_from_afar
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.programs import program_of, reading_of
from detjac_lanczos.frozen.prompt import Prompt
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.sweep import Program, forward
from detjac_lanczos.frozen.words import Freeze
from detjac_lanczos.models import LoadedModel, load_model
from detjac_lanczos.models.dtypes import compute_dtype


@dataclass(frozen=True, eq=False, repr=False)
class FrozenNetwork:
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
    altered : bool
        Whether `replace` changed anything: the model's own pass then says nothing of this network, which has values of
        its own.
    planned : Plan, optional
        Where the coefficients were put under a budget of memory; see `plan`.
    """

    loaded: LoadedModel
    family: Family
    prompts: tuple[Prompt, ...]
    freeze: Freeze
    coefficients: Mapping[str, Tensor]
    streams: Streams
    dropped: frozenset[str] = frozenset()
    planned: Plan | None = None
    altered: bool = False
    _programs: dict[tuple[int, str, int | None, Tensor | None], Program] = field(
        default_factory=dict, init=False, repr=False
    )
    _values: dict[tuple[str | int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the coefficients read-only."""
        object.__setattr__(self, "coefficients", MappingProxyType(dict(self.coefficients)))

    def __repr__(self) -> str:
        """One line: model, family, prompts and what is frozen."""
        dtype = str(self.dtype).removeprefix("torch.")
        without = f", without {', '.join(sorted(self.dropped))}" if self.dropped else ""
        return (
            f"{type(self).__name__}({self.loaded.name!r}, family={self.family.name!r}, tokens={self.lengths}, "
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
                fold(branch.chain, network.lengths, scale_factors=True)
            let_go(stage.mapped)
        return network

    @property
    def plan(self) -> Plan:
        """What is kept in memory, what lies elsewhere, and what is made again in every sweep."""
        return self.planned or make_plan(self.family.shape(self.model, self.freeze), self.lengths, None)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.loaded.model

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions of each prompt."""
        return tuple(prompt.length for prompt in self.prompts)

    @property
    def dtype(self) -> torch.dtype:
        """Working precision of the sweeps."""
        return compute_dtype(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the rows between sweeps."""
        return self.loaded.device

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

    def start_of(self, prompt: int) -> int:
        """Return the first row of a prompt in the streams."""
        return sum(self.lengths[:prompt])

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Folded stages in order: the entry (block −1), the blocks, the tail (block L)."""
        return tuple(
            replace(
                stage,
                branches=tuple(
                    Branch(branch.name, fold(branch.chain, self.lengths, scale_factors=False))
                    for branch in stage.branches
                ),
            )
            for stage in self._unfolded_stages
        )

    @property
    def tail(self) -> Stage:
        """From the last block to the output: the final norm."""
        return self.stages[-1]

    @property
    def _unfolded_stages(self) -> Iterator[Stage]:
        for stage in assemble(self.family, self.model, self.coefficients, self.freeze, self.dropped, self.streams):
            yield stage.brought()

    def program(self, source: int, target: Place) -> Program:
        """Return the stages from a source to a target.

        Parameters
        ----------
        source : int
            −1 for the embeddings, or the block that the stream enters.
        target : Place

        Returns
        -------
        Program

        Raises
        ------
        InputError
            If the target lies before the source or is a branch that blocks lack, or the rows of a probe do not fit the
            output.
        UnsupportedModelError
            If the way to the logits is not built as the family declares.
        """
        key = (source, target.kind, target.index, self._asked_before(target.rows))
        if key not in self._programs:
            self._programs[key] = program_of(self, source, target)
        return self._programs[key]

    def _asked_before(self, rows: Tensor | None) -> Tensor | None:
        """Return the rows of an earlier probe where they are equal: each probe holds a copy of its own."""
        if rows is None:
            return None
        known = (other for *_, other in self._programs if other is not None)
        alike = (other for other in known if (other.dtype, other.device) == (rows.dtype, rows.device))
        return next((other for other in alike if torch.equal(other, rows)), rows)

    @in_own_precision
    def value(self, target: Place, prompt: int, position: int) -> Tensor:
        """Return the value of a target at a position of a prompt, (d_out,): that of the model's nonlinear pass.

        An altered network has no such pass; its values are what it makes of the embeddings, read by the model's head.

        Parameters
        ----------
        target : Place
        prompt, position : int
            From 0.

        Returns
        -------
        Tensor, shape (d_out,)

        Raises
        ------
        InputError, UnsupportedModelError
            As in `program`.
        """
        if target.kind in ("logits", "probe"):
            y = self.value(Place("output"), prompt, position)[None]
            return apply_from_afar(reading_of(self, target, y), y, torch.zeros(1, dtype=torch.long))[0]
        if self.altered:
            return self._affine(-1, target, prompt, position, self.inputs(-1, prompt)[: position + 1])
        row = self.start_of(prompt) + position
        match target.kind:
            case "layer":
                assert target.index is not None
                return self.streams.residual[target.index + 1][row]
            case "residual":
                return self.streams.residual[-1][row]
            case "attention" | "mlp":
                assert target.index is not None
                return self._branch_values(target.kind, target.index)[row]
        return self.streams.output[row]

    def _branch_values(self, role: str, index: int) -> Tensor:
        if (role, index) not in self._values:
            values = branch_values(self.model, self.family, self.prompts, role, index)
            self._values[role, index] = values.to(self.device)
        return self._values[role, index]

    def inputs(self, source: int, prompt: int) -> Tensor:
        """Return what enters at every position of a prompt, the embeddings (−1) or a block's stream: (n, d).

        The stream of an altered network is its own, as its values are.

        Parameters
        ----------
        source : int
            As in `program`.
        prompt : int
            From 0.

        Returns
        -------
        Tensor, shape (n, d)
        """
        if self.altered and source > 0:
            return self._altered_stream(source, prompt)
        start = self.start_of(prompt)
        stream = self.streams.embeddings if source < 0 else self.streams.residual[source]
        return stream[start : start + self.lengths[prompt]]

    def _altered_stream(self, source: int, prompt: int) -> Tensor:
        key = ("stream", source, prompt)
        if key not in self._values:
            before = Place("layer", source - 1)
            rows = [self.value(before, prompt, position) for position in range(self.lengths[prompt])]
            self._values[key] = torch.stack(rows)
        return self._values[key]

    def offset(self, source: int, target: Place, prompt: int, position: int) -> Tensor:
        """Return the affine part r of y = Σ J_i x_i + r: (d_out,); zero in a network without biases.

        Parameters
        ----------
        source, target
            As in `program`.
        prompt, position : int
            From 0.

        Returns
        -------
        Tensor, shape (d_out,)

        Raises
        ------
        InputError, UnsupportedModelError
            As in `program`.
        """
        program = self.program(source, target)
        if not program.affine:
            return torch.zeros(program.d_out, dtype=self.dtype, device=self.device)
        zeros = torch.zeros(position + 1, program.d_in, dtype=self.dtype, device=self.device)
        return self._affine(source, target, prompt, position, zeros)

    def _affine(self, source: int, target: Place, prompt: int, position: int, rows: Tensor) -> Tensor:
        """Return what the network makes of rows (position + 1, d_in): (d_out,)."""
        layout = Layout([Segment(prompt, 0, position, 1, joint=True)], self.lengths, self.device)
        return forward(self.program(source, target), rows, layout, affine=True)[0]

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
            If a name does not exist, a shape differs, or a head, expert or branch does not exist.
        """
        changed = replaced(self.coefficients, coefficients or {})
        off = tuple(drop) if isinstance(drop, Iterable) and not isinstance(drop, str) else (drop,)
        for item in off:
            switch_off(changed, item, self.blocks)
        dropped = self.dropped.union(map(name_of, off))
        altered = self.altered or bool(coefficients) or bool(off)
        return replace(self, coefficients=changed, dropped=dropped, altered=altered)

    def save(self, path: str | Path) -> Path:
        """Write coefficients and streams to one safetensors file, whole or not at all; the weights stay out of it.

        Parameters
        ----------
        path : str or Path
            A file ending in ``.safetensors``, or a folder (made if missing) for ``network.safetensors``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        RunFileError
            If it cannot be written.
        """
        return store.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, model: LoadedModel | Any) -> Self:
        """Read a network back and join it to its model; its sweeps are the same bit for bit.

        Parameters
        ----------
        path : str or Path
            The file, or the folder that holds it.
        model : LoadedModel, or anything `load_model` takes
            The model it was made from: its weights must have the same fingerprint.

        Returns
        -------
        Self

        Raises
        ------
        RunFileError
            If the file is missing, truncated, foreign or newer than this version, or belongs to other weights, or
            the model lies on several devices.
        InputError, ModelError
            As `load_model`, or if no family declares the model.
        """
        loaded = load_model(model)
        return cls(loaded, **store.load(Path(path), loaded))

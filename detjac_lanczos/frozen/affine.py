"""A frozen network as an affine map between any two of its places: its program, what goes in and out, its offset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import ModelError
from detjac_lanczos.frozen.capture import branch_values, own_logits
from detjac_lanczos.frozen.layout import Layout, Segment
from detjac_lanczos.frozen.maps import Linear, Map, apply_from_afar, device_of
from detjac_lanczos.frozen.network import FrozenNetwork
from detjac_lanczos.frozen.places import Place, check_reach
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.said import Kinds, frozen_kinds, tail_in_words
from detjac_lanczos.frozen.stage import Branch, Stage
from detjac_lanczos.frozen.sweep import Program, forward, unpruned
from detjac_lanczos.frozen.widths import width_after
from detjac_lanczos.frozen.words import Softcap, Word, as_written
from detjac_lanczos.models.weights import DenseWeight

_SAME_PASS = {torch.float64: 1e-4, torch.float32: 1e-4}
"""How far the logits of equal passes may lie apart, by the kernels that serve them; 0.01 in half precision."""


@dataclass(frozen=True, eq=False, repr=False)
class AffineNetwork(FrozenNetwork):
    """A frozen network that is applied: y = Σ J_i x_i + r between any two of its places."""

    _programs: dict[tuple[int, str, int | None], tuple[Place, Program]] = field(
        default_factory=dict, init=False, repr=False
    )
    _values: dict[tuple[str | int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def frozen_kinds(self) -> Kinds:
        """The kinds of words that freeze something here, as a family file has them."""
        return frozen_kinds(self.family, self.model_of_pass)

    @property
    def tail_words(self) -> str:
        """What lies between the last block and the output, such as "the final norm"; empty where nothing does."""
        return tail_in_words(self.family, self.model_of_pass)

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
        key = source, target.kind, target.index
        known, program = self._programs.get(key, (None, None))
        if known is None or program is None or not known.is_that(target):
            # The latest probe takes the place of the one before: each has rows of its own.
            program = self._program(source, target)
            self._programs[key] = target, program
        return program

    @in_own_precision
    def _program(self, source: int, target: Place) -> Program:
        blocks = self.blocks
        check_reach(source, target, self.output_size)
        last = blocks - 1 if target.kind == "residual" else blocks if target.index is None else target.index
        stages = [stage for stage in self.stages if source <= stage.block <= last]
        weights = [self.own_weights.of("stages")]
        if target.kind in ("attention", "mlp"):
            name = f"{self.family.branch(target.kind).role}.{target.index}"
            end = next(i for i, stage in enumerate(stages) if any(b.name == name for b in stage.branches))
            only = tuple(b for b in stages[end].branches if b.name == name)
            stages = [*stages[:end], replace(stages[end], branches=only, residual=False)]
        elif target.kind in ("logits", "probe"):
            reading = self._reading(target, self.streams.output)
            weights += [self.own_weights.of("logits")] if target.kind == "logits" else []
            stages.append(Stage((Branch(target.kind, reading),), residual=False))
        stream = self.streams.embeddings if source < 0 else self.streams.residual[source]
        return Program(tuple(stages), stream.shape[1], self.width_at(target), blocks, tuple(weights))

    def _reading(self, target: Place, output: Tensor) -> tuple[Map, ...]:
        """Return the maps from the output to logits or a probe, frozen at rows of outputs (n, d)."""
        if target.rows is not None:
            return (Linear(DenseWeight(target.rows.to(self.device, self.dtype))),)
        self.own_weights.require_model()
        model = self.family.causal_model_of(self.model_of_pass)
        where, width, end = "the way to the logits", self.output_size, self.streams.logits.shape[1]
        reading: list[Map] = []
        for word in self.family.logits:
            with self.family.fits(where, as_written(word)):
                if isinstance(word, Softcap):
                    logits = apply_from_afar(reading, output, torch.arange(len(output), device=output.device))
                    steps = word.maps_at(model, logits.to(device_of(reading) or self.device))
                else:
                    steps = self._unrecorded(word, model)
                width = width_after(steps, width)
            reading += steps
        with self.family.fits(where):
            if width != end:
                raise ValueError(f"it gives rows {width} wide, and there are {end} logits")
        self.own_weights.join("logits", reading)
        return tuple(reading)

    def _unrecorded(self, word: Word, model: nn.Module) -> list[Map]:
        """Return the maps of a word without coefficients."""
        try:
            return word.maps(model, "", {}, self.freeze)
        except KeyError:
            raise ValueError("it freezes what a capture records, and nothing is recorded here") from None

    @in_own_precision
    def value(self, target: Place, prompt: int, position: int) -> Tensor:
        """Return the value of a target at a position of a prompt, (d_out,): that of the model's nonlinear pass.

        An altered network has no such pass; its values are what it makes of the embeddings, read by the model's head.
        Behind a softcap its logits are not what its maps make of them: those hold the ratio at the pass's own logits.
        Logits at positions before the last, of which the pass gives none, and probes are read from its output.

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
        if target.kind == "logits" and position == self.lengths[prompt] - 1 and not self.altered:
            return self.streams.logits[prompt].to(self.dtype)
        if target.kind in ("logits", "probe"):
            return self.read(target, prompt, position)
        if self.altered:
            return self._altered_value(target, prompt, position)
        row = self.start_of(prompt) + position
        match target.kind:
            case "layer" | "residual":
                return self.streams.residual[-1 if target.index is None else target.index + 1][row]
            case "attention" | "mlp":
                assert target.index is not None
                return self._branch_values(target.kind, target.index)[row]
        return self.streams.output[row]

    @in_own_precision
    def read(self, target: Place, prompt: int, position: int) -> Tensor:
        """Return what the network itself reads from its output at a position, logits or a probe: (d_out,).

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
        y = self.value(Place("output"), prompt, position)[None]
        return apply_from_afar(self._reading(target, y), y, torch.zeros(1, dtype=torch.long, device=y.device))[0]

    @torch.inference_mode(False)
    def _branch_values(self, role: str, index: int) -> Tensor:
        if (role, index) not in self._values:
            self.hooks.require_same(self.loaded.name)
            with self._still_built():
                values, logits = branch_values(self.model, self.family, self.prompts, role, index)
            self._require_own(logits, "the values of its branches are not known")
            self._values[role, index] = values.to(self.device)
        return self._values[role, index]

    def require_own_pass(self, otherwise: str) -> None:
        """Refuse what takes further passes of the model if it is no longer the one that was frozen: run it once.

        Parameters
        ----------
        otherwise : str
            What then follows.

        Raises
        ------
        ModelError
            If its logits on the prompts are others, or the hooks on all modules.
        """
        self.hooks.require_same(self.loaded.name)
        with self._still_built():
            logits = own_logits(self.model, self.prompts)
        self._require_own(logits, otherwise)

    @contextmanager
    def _still_built(self) -> Iterator[None]:
        """Say in one line that a module is no longer found because others took the places of what was frozen."""
        try:
            yield
        except (AttributeError, NotImplementedError):
            self.own_weights.require_model()
            raise

    def _require_own(self, logits: Tensor, otherwise: str) -> None:
        own = self.streams.logits
        allowed = _SAME_PASS.get(self.dtype, 0.01) * float(own.double().norm())
        alike = logits.shape == own.shape and logits.dtype is own.dtype
        if not (alike and float((logits.to(own) - own).double().norm()) <= allowed):
            raise ModelError(
                f"{self.loaded.name} gives other logits on the prompt than when it was frozen, so {otherwise}; detach "
                "again, or load the network with the model it was saved from"
            )

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
        # The first block's stream is altered by given values of the entry alone: what is dropped lies in blocks.
        entry = any(name.startswith("entry.") for name in self.changed)
        if (self.altered and source > 0) or (entry and source == 0):
            return self._altered_stream(source, prompt)
        start = self.start_of(prompt)
        stream = self.streams.embeddings if source < 0 else self.streams.residual[source]
        return stream[start : start + self.lengths[prompt]]

    @torch.inference_mode(False)
    def _altered_value(self, target: Place, prompt: int, position: int) -> Tensor:
        key = ("value", str(target), prompt, position)
        if key not in self._values:
            rows = self.inputs(-1, prompt)[: position + 1]
            self._values[key] = self._affine(-1, target, prompt, position, rows)
        return self._values[key]

    @torch.inference_mode(False)
    def _altered_stream(self, source: int, prompt: int) -> Tensor:
        key = ("stream", source, prompt)
        if key not in self._values:
            before = Place("layer", source - 1)
            layout = Layout([Segment(prompt, 0, self.lengths[prompt] - 1, 1, joint=True)], self.lengths, self.device)
            entering, program = self.inputs(-1, prompt), self.program(-1, before)
            self._values[key] = unpruned(program, entering, layout)
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

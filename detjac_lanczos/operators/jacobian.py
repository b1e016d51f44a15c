"""The Jacobian of a network as a linear operator, for one input token or for all of them jointly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.frozen.affine import AffineNetwork
from detjac_lanczos.frozen.layout import Segment
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.said import frozen_in_words
from detjac_lanczos.frozen.shared import Shared
from detjac_lanczos.frozen.words import Softcap
from detjac_lanczos.operators.blocks import check_block
from detjac_lanczos.operators.differentiable import Products, products
from detjac_lanczos.operators.float16 import FORWARDS, TRANSPOSED, fitting, scaled, unscaled
from detjac_lanczos.operators.linear import MatrixFree
from detjac_lanczos.operators.reconstruction import Reconstruction
from detjac_lanczos.operators.sweeps import Sweeps


class Jacobian(MatrixFree):
    """J of one source token (or of all tokens side by side) at one output position.

    ``shape`` is (d_out, d_in); a joint operator has d_in = tokens · hidden size, token after token.

    Attributes
    ----------
    network : AffineNetwork
    sweeps : Sweeps
        The network's products between source and target.
    source : int
        Block whose incoming residual stream is the input; −1 is the embeddings.
    target : Place
    prompt, position : int
        Prompt and output position.
    token : int or None
        Input token; None for the joint operator.
    """

    def __init__(
        self,
        network: AffineNetwork,
        sweeps: Sweeps,
        source: int,
        target: Place,
        prompt: int,
        token: int | None,
        position: int,
    ) -> None:
        self.network, self.sweeps, self.source, self.target = network, sweeps, source, target
        self.prompt, self.token, self.position = prompt, token, position
        self.dtype, self.device = network.dtype, network.device
        joint = token is None
        self.segment = Segment(prompt, 0 if token is None else token, position, 1, joint)
        self.tokens = self.segment.length if joint else 1
        self.shape = (sweeps.d_out, sweeps.d_in * self.tokens)

    def _goes_with(self, other: Jacobian) -> bool:
        """Tell whether both are of one map between two places, at whatever tokens and positions."""
        return (
            type(self) is type(other)
            and self.network is other.network
            and self.source == other.source
            and self.target.is_that(other.target)
        )

    def _matmat(self, X: Tensor) -> Tensor:
        return JacobianBatch([self])._matmat([0], X)[0]

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return JacobianBatch([self])._rmatmat([0], Y)[0]

    @property
    def x(self) -> Tensor:
        """The input of the nonlinear pass: (d_in,)."""
        inputs = self.network.inputs(self.source, self.prompt)
        return inputs[self.token] if self.token is not None else inputs[: self.position + 1].reshape(-1)

    @property
    def y(self) -> Tensor:
        """The target's value in the nonlinear pass, or, in an altered network, its own: (d_out,)."""
        return self.network.value(self.target, self.prompt, self.position)

    @property
    @abstractmethod
    def offset(self) -> Tensor:
        """What Σ J_i x_i, over all tokens up to the output position, leaves of y: (d_out,)."""

    @property
    @abstractmethod
    def reconstruction(self) -> Reconstruction:
        """How well the Jacobians of all tokens up to the output position give y."""

    def cost(self) -> float:
        """Row-sweeps of one column, either way."""
        return self.sweeps.cost(self.segment)

    @property
    def definition(self) -> dict[str, Any]:
        """What this operator is, in plain words."""
        network = self.network
        start = (
            network.family.input_definition if self.source < 0 else f"the residual stream entering block {self.source}"
        )
        tail = network.tail_words
        ends = {
            "output": f"after {tail or 'the last block'}",
            "residual": f"the residual stream {f'before {tail}' if tail else 'after the last block'}",
        }
        bends = set() if self.target.kind == "logits" else {Softcap}
        return {
            "family": network.family.name,
            "freeze": network.freeze,
            "frozen": frozen_in_words(set(network.frozen_kinds) - bends, network.freeze),
            "route": self.sweeps.route,
            "input": start,
            "target": str(self.target),
            "target_definition": ends.get(str(self.target), str(self.target)),
            "tail": tail,
            "position": self.position,
            "token": "joint" if self.token is None else self.token,
            "dtype": str(self.dtype).removeprefix("torch."),
            **({"weights": network.loaded.decoding} if network.loaded.decoding else {}),
            **({"switched_off": sorted(network.dropped)} if network.dropped else {}),
        }

    def _sum(self) -> Tensor:
        """Return Σ J_i x_i over all tokens up to the output position: (d_out,)."""
        joint = type(self)(self.network, self.sweeps, self.source, self.target, self.prompt, None, self.position)
        return joint._matmat(joint.x[:, None])[:, 0]

    def __repr__(self) -> str:
        """One line that says what the operator is."""
        d = self.definition
        weights = f", weights {d['weights']}" if "weights" in d else ""
        without = f", without {', '.join(d['switched_off'])}" if "switched_off" in d else ""
        return (
            f"{type(self).__name__}(shape={self.shape}, token={d['token']}, position={self.position}, "
            f"input: {d['input']}, target: {d['target_definition']}, freeze={d['freeze']!r}{weights}{without}, "
            f"{d['dtype']})"
        )


class DetachedJacobian(Jacobian):
    """J of the detached network: y = Σ J_i x_i + offset. Made by ``network.jacobian(token)``."""

    @property
    def offset(self) -> Tensor:
        """The affine part r of y = Σ J_i x_i + r: (d_out,)."""
        return self.network.offset(self.source, self.target, self.prompt, self.position)

    @property
    def reconstruction(self) -> Reconstruction:
        """How well Σ J_i x_i + offset, over all tokens up to the output position, gives y.

        Raises
        ------
        InputError
            If something in the network was replaced or switched off.
        """
        if self.network.altered:
            raise InputError(
                "a network with something replaced or switched off has no forward pass of the model to be held "
                "against; reconstruct the network it was made from"
            )
        offset = self.offset
        return Reconstruction.of(self.y, self._sum() + offset, offset)


class OrdinaryJacobian(Jacobian):
    """J of the model itself, nothing frozen, by automatic differentiation. Made by ``jacobian(..., frozen=False)``.

    A nonlinear model is no sum of its ordinary Jacobians: Σ J_i x_i misses y, and the reconstruction says by how much.
    """

    @property
    def offset(self) -> Tensor:
        """What Σ J_i x_i misses of y: (d_out,). No part of the map, and no part of the reconstruction."""
        return self.y - self._sum()

    @property
    def reconstruction(self) -> Reconstruction:
        """What Σ J_i x_i, over all tokens up to the output position, gives of y."""
        y, estimate = self.y, self._sum()
        return Reconstruction.of(y, estimate, y - estimate)

    @property
    def definition(self) -> dict[str, Any]:
        """What this operator is, in plain words."""
        return super().definition | {"freeze": "nothing", "frozen": "nothing"}


class JacobianBatch(Shared):
    """Many Jacobians of one network, source and target, swept together: the solver's batch protocol.

    Its products are differentiable, as those of each operator are.

    Parameters
    ----------
    operators : sequence of Jacobian
        One or more, frozen or ordinary ones.

    Raises
    ------
    InputError
        If there are none, or they are of different networks, sources or targets, or frozen and ordinary ones.
    """

    def __init__(self, operators: Sequence[Jacobian]) -> None:
        self.operators = list(operators)
        if not self.operators:
            raise InputError("a batch is of one Jacobian or more; got none")
        first = self.operators[0]
        if not all(map(first._goes_with, self.operators)):
            raise InputError(
                "a batch sweeps one map: operators of one network, source and target, all frozen or all ordinary; "
                "make a batch of each"
            )
        self.network, self.sweeps = first.network, first.sweeps
        self.dtype, self.device = first.dtype, first.device

    def __len__(self) -> int:
        """Return the number of operators."""
        return len(self.operators)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(d_out, d_in) of every operator."""
        return [operator.shape for operator in self.operators]

    def part(self, indices: Sequence[int]) -> JacobianBatch:
        """Return some operators as a batch of their own, whose shared sweeps leave the others out.

        Parameters
        ----------
        indices : sequence of int
            One or more.

        Returns
        -------
        JacobianBatch
        """
        return JacobianBatch([self.operators[index] for index in indices])

    def matmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_i X_i for every (i, X_i), in one sweep: (d_in, b_i) to (d_out, b_i).

        Raises
        ------
        OperatorError
            If a block has another shape, dtype or device, or is not finite.
        """
        return self._checked("matmat", 1, self._matmat, self._rmatmat, blocks) if blocks else []

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_iᵀ Y_i for every (i, Y_i), in one sweep: (d_out, b_i) to (d_in, b_i).

        Raises
        ------
        OperatorError
            If a block has another shape, dtype or device, or is not finite.
        """
        return self._checked("rmatmat", 0, self._rmatmat, self._matmat, blocks) if blocks else []

    def rmatmat_shared(self, Y: Tensor) -> list[Tensor]:
        """Return A_iᵀ Y for every operator: (d_out, b) to one (d_in, b) each.

        Operators of one prompt and output position share one segment: n rows a column instead of one segment each.

        Raises
        ------
        OperatorError
            If Y has another shape, dtype or device, or is not finite.
        """
        check_block(self, Y, self.sweeps.d_out, "rmatmat_shared")
        every = range(len(self))
        shared = partial(self._rmatmat_shared, every)
        return list(products(["rmatmat_shared"], shared, shared, partial(self._matmat_sum, every), Y))

    def matmat_sum(self, blocks: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Return Σ A_i X_i over every (i, X_i), all of one width: (d_in, b) each to one (d_out, b).

        Operators of one prompt and output position share one segment, as in `rmatmat_shared`: each X_i enters at its
        token.

        Raises
        ------
        InputError
            If there are no blocks.
        OperatorError
            As in `matmat`, or if the widths differ.
        """
        if not blocks:
            raise InputError("matmat_sum was given no blocks; pass at least one (operator, block)")
        return self._checked("matmat_sum", 1, self._matmat_sum, self._rmatmat_shared, blocks)[0]

    def cost(self, index: int) -> float:
        """Row-sweeps of one column of operator ``index``, either way."""
        return self.operators[index].cost()

    def shared_cost(self) -> float:
        """Row-sweeps of one shared cotangent column, and of one column of `matmat_sum`."""
        return sum(self.sweeps.cost(segment) for segment in self._ends)

    @property
    def _ends(self) -> list[Segment]:
        """Every prompt and output position once, with all tokens from the first that an operator of it needs."""
        starts: dict[tuple[int, int], int] = {}
        for operator in self.operators:
            end = (operator.prompt, operator.position)
            starts[end] = min(starts.get(end, operator.position), operator.segment.start)
        return [Segment(prompt, start, position, 1, joint=True) for (prompt, position), start in starts.items()]

    def _checked(
        self, name: str, side: int, value: Products, transposed: Products, blocks: Sequence[tuple[int, Tensor]]
    ) -> list[Tensor]:
        """Return the products with blocks that have as many rows as the shapes of their operators have on a side."""
        indices = [index for index, _ in blocks]
        names = [f"{name} of operator {index}" for index in indices]
        for (index, block), named in zip(blocks, names, strict=True):
            check_block(self, block, self.operators[index].shape[side], named)
        value = partial(value, indices)
        return list(products(names, value, value, partial(transposed, indices), *(block for _, block in blocks)))

    def _matmat(self, indices: Sequence[int], *blocks: Tensor) -> list[Tensor]:
        operators = [self.operators[index] for index in indices]
        segments = [replace(A.segment, width=X.shape[1]) for A, X in zip(operators, blocks, strict=True)]
        factors = [fitting([X], FORWARDS) for X in blocks]
        triples = zip(operators, blocks, factors, strict=True)
        rows = torch.cat([self._to_rows(A, scaled(X, f)) for A, X, f in triples])
        parts = self.sweeps.forward(segments, rows).split([s.width for s in segments])
        return [unscaled(part.T, f) for part, f in zip(parts, factors, strict=True)]

    def _rmatmat(self, indices: Sequence[int], *blocks: Tensor) -> list[Tensor]:
        operators = [self.operators[index] for index in indices]
        segments = [replace(A.segment, width=Y.shape[1]) for A, Y in zip(operators, blocks, strict=True)]
        factors = [fitting([Y], TRANSPOSED) for Y in blocks]
        rows = torch.cat([scaled(Y, f).T for Y, f in zip(blocks, factors, strict=True)])
        parts = self.sweeps.transposed(segments, rows).split([s.source_rows for s in segments])
        return [
            unscaled(self._to_columns(A, part, s.width), f)
            for A, part, s, f in zip(operators, parts, segments, factors, strict=True)
        ]

    def _rmatmat_shared(self, indices: Sequence[int], Y: Tensor) -> list[Tensor]:
        segments = [replace(segment, width=Y.shape[1]) for segment in self._ends]
        factors = fitting([Y], TRANSPOSED)
        rows = self.sweeps.transposed(segments, scaled(Y, factors).T.repeat(len(segments), 1))
        parts = zip(segments, rows.split([s.rows for s in segments]), strict=True)
        shape = (Y.shape[1], self.sweeps.d_in)
        by_end = {(s.prompt, s.position): (s.start, part.view(s.length, *shape)) for s, part in parts}
        results = []
        for operator in (self.operators[index] for index in indices):
            first, part = by_end[operator.prompt, operator.position]
            start = operator.segment.start - first
            positions = part[start : start + operator.tokens]
            results.append(unscaled(positions.permute(0, 2, 1).flatten(0, 1), factors))
        return results

    def _matmat_sum(self, indices: Sequence[int], *blocks: Tensor) -> list[Tensor]:
        width, *others = sorted({block.shape[1] for block in blocks})
        if others:
            raise OperatorError(f"matmat_sum adds products of one width; got {width} and {others[0]} columns")
        segments = [replace(segment, width=width) for segment in self._ends]
        parts = [blocks[0].new_zeros(s.length, width, self.sweeps.d_in) for s in segments]
        entries = dict(zip(((s.prompt, s.position) for s in segments), zip(segments, parts, strict=True), strict=True))
        factors = fitting(blocks, FORWARDS)
        for index, block in zip(indices, blocks, strict=True):
            operator = self.operators[index]
            segment, part = entries[operator.prompt, operator.position]
            start = operator.segment.start - segment.start
            rows = self._to_rows(operator, scaled(block, factors))
            part[start : start + operator.tokens] += rows.view(operator.tokens, width, self.sweeps.d_in)
        out = self.sweeps.forward(segments, torch.cat(parts).flatten(0, 1))
        return [unscaled(out.view(len(segments), width, self.sweeps.d_out).sum(dim=0).T, factors)]

    def _to_rows(self, operator: Jacobian, X: Tensor) -> Tensor:
        if operator.token is not None:
            return X.T
        return X.view(operator.tokens, self.sweeps.d_in, -1).permute(0, 2, 1).reshape(-1, self.sweeps.d_in)

    def _to_columns(self, operator: Jacobian, rows: Tensor, width: int) -> Tensor:
        if operator.token is not None:
            return rows.T
        return rows.view(operator.tokens, width, self.sweeps.d_in).permute(0, 2, 1).flatten(0, 1)

"""The Jacobian of the detached network as a linear operator, for one input token or for all of them jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.frozen.layout import Layout, Segment
from detjac_lanczos.frozen.network import FrozenNetwork
from detjac_lanczos.frozen.places import Place
from detjac_lanczos.frozen.sweep import Program, forward, transposed
from detjac_lanczos.operators.blocks import check_block
from detjac_lanczos.operators.linear import MatrixFree


class DetachedJacobian(MatrixFree):
    """J of one source token (or of all tokens side by side) at one output position.

    Made by ``network.jacobian(token)``. ``shape`` is (d_out, d_in); a joint operator has d_in = tokens · hidden size,
    token after token.

    Attributes
    ----------
    network : FrozenNetwork
    source : int
        Block whose incoming residual stream is the input; 0 is the embeddings.
    target : Place
    prompt, position : int
        Prompt and output position.
    token : int or None
        Input token; None for the joint operator.
    """

    def __init__(
        self, network: FrozenNetwork, source: int, target: Place, prompt: int, token: int | None, position: int
    ) -> None:
        self.network, self.source, self.target = network, source, target
        self.prompt, self.token, self.position = prompt, token, position
        self.program: Program = network.program(source, target)
        joint = token is None
        self.segment = Segment(prompt, 0 if token is None else token, position, 1, joint)
        self.tokens = self.segment.length if joint else 1
        self.shape = (self.program.d_out, self.program.d_in * self.tokens)
        self.dtype, self.device = network.dtype, network.device
        self._batch = JacobianBatch([self])

    def _matmat(self, X: Tensor) -> Tensor:
        return self._batch._matmat([(0, X)])[0]

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._batch._rmatmat([(0, Y)])[0]

    @property
    def x(self) -> Tensor:
        """The input of the nonlinear pass: (d_in,)."""
        inputs = self.network.inputs(self.source, self.prompt)
        return inputs[self.token] if self.token is not None else inputs[: self.position + 1].reshape(-1)

    @property
    def y(self) -> Tensor:
        """The target's value in the nonlinear pass: (d_out,)."""
        return self.network.value(self.target, self.prompt, self.position)

    @property
    def offset(self) -> Tensor:
        """The affine part r of y = Σ J_i x_i + r: (d_out,)."""
        return self.network.offset(self.source, self.target, self.prompt, self.position)

    @property
    def reconstruction(self) -> Reconstruction:
        """How well Σ J_i x_i + offset, over all tokens up to the output position, gives y."""
        joint = DetachedJacobian(self.network, self.source, self.target, self.prompt, None, self.position)
        offset = self.offset
        estimate = joint._matmat(joint.x[:, None])[:, 0] + offset
        return Reconstruction.of(self.y, estimate, offset)

    def cost(self) -> float:
        """Row-sweeps of one column, either way."""
        return self.program.row_sweeps(self.segment.length)

    @property
    def definition(self) -> dict[str, Any]:
        """What this operator is, in plain words."""
        network = self.network
        start = (
            network.family.input_definition if self.source < 0 else f"the residual stream entering block {self.source}"
        )
        after = {"output": "after the final norm", "residual": "the residual stream before the final norm"}
        return {
            "family": network.family.name,
            "freeze": network.freeze,
            "input": start,
            "target": str(self.target),
            "target_definition": after.get(str(self.target), str(self.target)),
            "position": self.position,
            "token": "joint" if self.token is None else self.token,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def __repr__(self) -> str:
        """One line that says what the operator is."""
        d = self.definition
        return (
            f"DetachedJacobian(shape={self.shape}, token={d['token']}, position={self.position}, input: {d['input']}, "
            f"target: {d['target_definition']}, freeze={d['freeze']!r}, {d['dtype']})"
        )


@dataclass(frozen=True)
class Reconstruction:
    """How well the frozen network's own algebra gives the nonlinear output.

    ``relative_error`` is std(ŷ − y) / std(y), as in the paper; ``norm_error`` is ‖ŷ − y‖ / ‖y‖; ``offset_share`` is
    ‖offset‖ / ‖y‖.
    """

    y: Tensor = field(repr=False)
    estimate: Tensor = field(repr=False)
    relative_error: float
    norm_error: float
    offset_share: float

    @classmethod
    def of(cls, y: Tensor, estimate: Tensor, offset: Tensor) -> Reconstruction:
        """Compare an estimate with y, all (d_out,)."""
        truth, error = y.double(), estimate.double() - y.double()
        return cls(
            y=y,
            estimate=estimate,
            relative_error=float(error.std() / truth.std()),
            norm_error=float(error.norm() / truth.norm()),
            offset_share=float(offset.double().norm() / truth.norm()),
        )


class JacobianBatch:
    """Many Jacobians of one network, source and target, swept together: the solver's batch protocol."""

    def __init__(self, operators: Sequence[DetachedJacobian]) -> None:
        self.operators = list(operators)
        first = self.operators[0]
        self.program, self.network = first.program, first.network
        self.dtype, self.device = first.dtype, first.device
        self._layouts: dict[tuple[Segment, ...], Layout] = {}

    def __len__(self) -> int:
        """Return the number of operators."""
        return len(self.operators)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(d_out, d_in) of every operator."""
        return [operator.shape for operator in self.operators]

    def matmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_i X_i for every (i, X_i), in one sweep: (d_in, b_i) to (d_out, b_i)."""
        for index, block in blocks:
            check_block(self, block, self.operators[index].shape[1], f"matmat of operator {index}")
        return self._matmat(blocks)

    def rmatmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Return A_iᵀ Y_i for every (i, Y_i), in one sweep: (d_out, b_i) to (d_in, b_i)."""
        for index, block in blocks:
            check_block(self, block, self.operators[index].shape[0], f"rmatmat of operator {index}")
        return self._rmatmat(blocks)

    def rmatmat_shared(self, Y: Tensor) -> list[Tensor]:
        """Return A_iᵀ Y for every operator: (d_out, b) to one (d_in, b) each.

        Operators of one prompt and output position share one segment: n rows a column instead of one segment each.
        """
        check_block(self, Y, self.program.d_out, "rmatmat_shared")
        ends = self._ends
        layout = self._layout([Segment(prompt, 0, position, Y.shape[1], joint=True) for prompt, position in ends])
        rows = transposed(self.program, Y.T.repeat(len(ends), 1), layout)
        by_end = dict(zip(ends, rows.split([s.rows for s in layout.segments]), strict=True))
        results = []
        for operator in self.operators:
            positions = by_end[operator.prompt, operator.position].view(-1, Y.shape[1], self.program.d_in)
            tokens = slice(None) if operator.token is None else slice(operator.token, operator.token + 1)
            results.append(positions[tokens].permute(0, 2, 1).reshape(-1, Y.shape[1]))
        return results

    def cost(self, index: int) -> float:
        """Row-sweeps of one column of operator ``index``, either way."""
        return self.operators[index].cost()

    def shared_cost(self) -> float:
        """Row-sweeps of one shared cotangent column."""
        return sum(self.program.row_sweeps(position + 1) for _, position in self._ends)

    @property
    def _ends(self) -> list[tuple[int, int]]:
        return list(dict.fromkeys((operator.prompt, operator.position) for operator in self.operators))

    def _matmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        if not blocks:
            return []
        layout = self._layout([replace(self.operators[i].segment, width=X.shape[1]) for i, X in blocks])
        rows = torch.cat([self._to_rows(self.operators[i], X) for i, X in blocks])
        out = forward(self.program, rows, layout)
        return [part.T for part in out.split([s.width for s in layout.segments])]

    def _rmatmat(self, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        if not blocks:
            return []
        layout = self._layout([replace(self.operators[i].segment, width=Y.shape[1]) for i, Y in blocks])
        out = transposed(self.program, torch.cat([Y.T for _, Y in blocks]), layout)
        parts = out.split([s.source_rows for s in layout.segments])
        return [
            self._to_columns(self.operators[i], part, Y.shape[1]) for (i, Y), part in zip(blocks, parts, strict=True)
        ]

    def _to_rows(self, operator: DetachedJacobian, X: Tensor) -> Tensor:
        if operator.token is not None:
            return X.T
        return X.view(operator.tokens, self.program.d_in, -1).permute(0, 2, 1).reshape(-1, self.program.d_in)

    def _to_columns(self, operator: DetachedJacobian, rows: Tensor, width: int) -> Tensor:
        if operator.token is not None:
            return rows.T
        return rows.view(operator.tokens, width, -1).permute(0, 2, 1).reshape(-1, width)

    def _layout(self, segments: Sequence[Segment]) -> Layout:
        key = tuple(segments)
        if key not in self._layouts:
            self._layouts = {key: Layout(key, self.network.lengths, self.device)}
        return self._layouts[key]

"""The floor under a sweep: its GEMMs alone, on the road measured fastest, the mixing product counted as one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detjac_kernels import linear, linear_transposed, mix, mix_transposed
from detjac_lanczos.frozen.experts import Experts
from detjac_lanczos.frozen.layout import Layout, Mixing
from detjac_lanczos.frozen.maps import Linear, Map, Mix, Nested
from detjac_lanczos.frozen.sweep import Program


class Floor:
    """The GEMMs of one sweep, each weight as one plain matrix; calling it runs them.

    Parameters
    ----------
    program : Program
    layout : Layout
        Says how many rows each GEMM sees: after the last mixing one a column is left, and an expert sees those routed
        to it.
    transposed : bool
    """

    def __init__(self, program: Program, layout: Layout, *, transposed: bool) -> None:
        self.transposed = transposed
        self.products: list[Callable[[], Tensor]] = []
        self._inputs: dict[tuple[torch.dtype, tuple[int, ...]], Tensor] = {}
        chains = program.transposed_chains if transposed else program.chains
        for index, branches in enumerate(chains):
            before = layout.positions if index <= program.last_mixing else layout.pruned_positions
            after = layout.positions if index < program.last_mixing else layout.pruned_positions
            mixing = layout.pruning if index == program.last_mixing else layout.square
            for chain in branches:
                if any(isinstance(step, Mix) for step in chain):
                    self._add(chain, after if transposed else before, before if transposed else after, mixing)
                else:
                    self._add(chain, after, after, mixing)

    def __call__(self) -> None:
        """Run them."""
        for product in self.products:
            product()

    def _add(self, chain: Sequence[Map], positions: Tensor, mixed: Tensor, mixing: Mixing) -> None:
        """Add the products of a chain whose rows are at ``positions``, and at ``mixed`` after its mixing."""
        width = 0
        for step in chain:
            match step:
                case Linear():
                    width = self._add_linear(step, len(positions))
                case Mix():
                    width = self._add_mix(step, mixing, width)
                    positions = mixed
                case Experts():
                    for part, routed in zip(step.chains, step.routed, strict=True):
                        self._add(part, positions[torch.isin(positions, routed)], mixed, mixing)
                case Nested():
                    for part in step.chains:
                        self._add(part, positions, mixed, mixing)

    def _add_linear(self, step: Linear, rows: int) -> int:
        matrix = step.weight.dense()
        if 1 not in matrix.stride():
            matrix = matrix.contiguous()
        f, d = matrix.shape[::-1] if step.transposed else matrix.shape
        x, product = self._input(matrix.dtype, rows, d), linear_transposed if step.transposed else linear
        self.products.append(lambda: product(x, matrix))
        return f

    def _add_mix(self, step: Mix, mixing: Mixing, width: int) -> int:
        group = step.heads // step.kv_heads
        heads_in, heads_out = (step.heads, step.kv_heads) if step.transposed else (step.kv_heads, step.heads)
        columns = width // heads_in
        product, dtype = mix_transposed if step.transposed else mix, step.probabilities[0].dtype
        for tile in mixing.tiles:
            queries, keys = group * len(tile.queries.positions), len(tile.keys.positions)
            p = self._input(dtype, step.kv_heads, queries, keys)
            v = self._input(dtype, step.kv_heads, queries if step.transposed else keys, tile.columns * columns)
            self.products.append(lambda p=p, v=v: product(p, v))
        return columns * heads_out

    def _input(self, dtype: torch.dtype, *shape: int) -> Tensor:
        if (dtype, shape) not in self._inputs:
            self._inputs[dtype, shape] = torch.randn(shape, dtype=dtype)
        return self._inputs[dtype, shape]

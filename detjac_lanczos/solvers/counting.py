"""Every product of a solve goes through here: it is counted, and its answer is checked."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, OperatorError
from detjac_lanczos.solvers.chunks import turns
from detjac_lanczos.solvers.journal import Journal
from detjac_lanczos.solvers.operator import Direction, OperatorBatch, SummingBatch
from detjac_lanczos.solvers.options import Callback
from detjac_lanczos.solvers.product_fault import product_fault
from detjac_lanczos.solvers.recognition import Recognition
from detjac_lanczos.solvers.reporter import Reporter
from detjac_lanczos.solvers.rounding import (
    agree,
    epsilon,
    epsilon_at,
    noise_floor,
    rounding_of,
    underflow,
    working_dtype,
)


@dataclass(frozen=True, eq=False)
class _Pass:
    """What one pass returned; ``seconds`` is None where it was made now and not read from a journal."""

    products: list[Tensor]
    began: float
    seconds: float | None


class CountingBatch:
    """A batch seen by the solvers: blocks are rows, products come back in working precision, all is counted.

    One call is one pass. Blocks go out in the operator's dtype: the rounding that they suffer is the operator's own.
    Products of the wrong shape, dtype or device raise; non-finite ones are noted in ``nonfinite``, so that one
    operator's overflow does not end the others' solve.

    Parameters
    ----------
    batch : OperatorBatch
    journal : Journal, optional
        Where passes are written down, and those of an earlier run of the same solve are read.
    callback : callable, optional
        Called after every pass.

    Attributes
    ----------
    forward, transposed : list of int
        Columns applied to each operator.
    passes : list of int
        Sweeps that each operator took part in.
    row_sweeps : list of float
        Rows sent through all layers for each operator; a shared column is split evenly.
    sweeps : list of (rows, seconds)
        Rows and time of every pass, in order.
    nonfinite : dict
        A sentence for each operator that returned NaN or infinity, or has a singular value that overflows.
    defects : dict
        Of each operator whose products contradict its transposed ones: by how much, relative to the products.
    reporter : Reporter
        What the callback is told of.
    """

    def __init__(self, batch: OperatorBatch, journal: Journal | None = None, callback: Callback | None = None) -> None:
        self.batch = batch
        self.journal = journal
        self.shapes = [(int(rows), int(columns)) for rows, columns in batch.shapes]
        self.operator_dtype = batch.dtype
        self.dtype = working_dtype(batch.dtype)
        self.device = torch.device(batch.device)
        count = len(self.shapes)
        self.costs = [float(batch.cost(index)) for index in range(count)]
        self.shared_cost = float(batch.shared_cost())
        if not all(cost > 0.0 for cost in (*self.costs, self.shared_cost)):
            raise InputError("cost and shared_cost are row-sweeps of a column: return numbers above 0")
        self.forward = [0] * count
        self.transposed = [0] * count
        self.passes = [0] * count
        self.row_sweeps = [0.0] * count
        self._recognition = Recognition(batch)
        self.sweeps: list[tuple[float, float]] = []
        self.nonfinite: dict[int, str] = {}
        self.defects: dict[int, float] = {}
        self.reporter = Reporter(callback, count)
        self.began = time.perf_counter()
        self._earlier = 0.0

    def __len__(self) -> int:
        """Return how many operators there are."""
        return len(self.shapes)

    @property
    def one_output_space(self) -> bool:
        """Whether all operators have one d_out, so that they can share cotangents."""
        return len({d_out for d_out, _ in self.shapes}) == 1

    @property
    def seconds(self) -> float:
        """Time since the solve began, and what the passes of a journal took when they were made."""
        return time.perf_counter() - self.began + self._earlier

    def apply(self, direction: Direction, blocks: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """Apply each operator, or its transpose, to its own block in one pass.

        Parameters
        ----------
        direction : Direction
        blocks : list of (operator, rows), rows of shape (b_i, d_in) forward, (b_i, d_out) transposed

        Returns
        -------
        list of Tensor, shape (b_i, d_out) forward, (b_i, d_in) transposed

        Raises
        ------
        OperatorError
            A product has the wrong shape, dtype or device.
        """
        forward = direction is Direction.FORWARD
        apply, where = (self.batch.matmat if forward else self.batch.rmatmat), [index for index, _ in blocks]
        way, sent = f"{direction.value} {where}", [rows.to(self.operator_dtype).T for _, rows in blocks]
        columns = list(zip(where, sent, strict=True))
        made = self._begin(way, sent, lambda: apply(list(zip(where, _cloned(sent), strict=True))), direction, columns)
        products = made.products
        if len(products) != len(blocks):
            raise OperatorError(f"a {direction.value} pass of {len(blocks)} blocks returned {len(products)} of them")
        swept = 0.0
        counts = self.forward if forward else self.transposed
        for index, rows in blocks:
            counts[index] += rows.shape[0]
            self.passes[index] += 1
            self.row_sweeps[index] += rows.shape[0] * self.costs[index]
            swept += rows.shape[0] * self.costs[index]
        checked = [
            self._checked(index, direction, rows.shape[0], product)
            for (index, rows), product in zip(blocks, products, strict=True)
        ]
        self._end(way, sent, made, swept)
        return checked

    @property
    def remedy(self) -> str:
        """What to do where a product is not finite."""
        checked = "check the weights and the input"
        if self.operator_dtype is not torch.float16:
            return checked
        return f"compute in bfloat16 or float32, since float16 ends at 65,504, or {checked}"

    def finite(self, products: list[Tensor]) -> list[Tensor]:
        """Return products, where none so far was NaN or infinite.

        Raises
        ------
        OperatorError
            One was.
        """
        for sentence in self.nonfinite.values():
            raise OperatorError(f"{sentence}: {self.remedy}")
        return products

    def apply_shared(self, rows: Tensor) -> list[Tensor]:
        """Apply every transpose to the same rows ``(b, d_out)`` in one pass; returns one ``(b, d_in)`` for each."""
        block, width = rows.to(self.operator_dtype).T, rows.shape[0]
        columns = [(index, block) for index in range(len(self))]
        made = self._begin(
            "shared", [block], lambda: self.batch.rmatmat_shared(block.clone()), Direction.TRANSPOSED, columns
        )
        products = made.products
        if len(products) != len(self):
            raise OperatorError(f"a shared pass over {len(self)} operators returned {len(products)} blocks")
        for index in range(len(self)):
            self.transposed[index] += width
            self.passes[index] += 1
            self.row_sweeps[index] += width * self.shared_cost / len(self)
        checked = [self._checked(index, Direction.TRANSPOSED, width, block) for index, block in enumerate(products)]
        self._end("shared", [block], made, width * self.shared_cost)
        return checked

    def apply_sum(self, blocks: Sequence[tuple[int, Tensor]]) -> Tensor:
        """Apply operators of one output space to blocks of one width and add up the products, in one pass.

        A batch that cannot add them on the way has them added here, at the price of a pass of separate columns.

        Parameters
        ----------
        blocks : list of (operator, rows), rows of shape (b, d_in)

        Returns
        -------
        Tensor, shape (b, d_out)
        """
        if not isinstance(self.batch, SummingBatch):
            return torch.stack(self.apply(Direction.FORWARD, blocks)).sum(dim=0)
        add, where = self.batch.matmat_sum, [index for index, _ in blocks]
        way, sent = f"sum {where}", [rows.to(self.operator_dtype).T for _, rows in blocks]
        made = self._begin(way, sent, lambda: [add(list(zip(where, _cloned(sent), strict=True)))], Direction.FORWARD)
        width = blocks[0][1].shape[0]
        for index, _ in blocks:
            self.forward[index] += width
            self.passes[index] += 1
            self.row_sweeps[index] += width * self.shared_cost / len(blocks)
        checked = self._checked(blocks[0][0], Direction.FORWARD, width, made.products[0])
        if blocks[0][0] in self.nonfinite:
            for index, _ in blocks:
                self.nonfinite.setdefault(index, f"operator {index}: a sum of products holds NaN or infinite values")
        self._end(way, sent, made, width * self.shared_cost)
        return checked

    def both_ways(
        self, counts: Mapping[int, int], rows: Callable[[int], tuple[Tensor, Tensor]]
    ) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
        """Send pairs of rows, one forward and one back, in passes that operators share as far as these hold them.

        Parameters
        ----------
        counts : mapping of int to int
            How many pairs each operator is sent.
        rows : callable
            Returns those of an operator, ``(count, d_in)`` and ``(count, d_out)``, when it is their turn.

        Yields
        ------
        list of (operator, pushed, pulled)
            Their products, ``(count, d_out)`` and ``(count, d_in)``, of the operators of one turn.
        """
        waiting = list(counts)
        for turn in turns([counts[index] * self.costs[index] for index in waiting]):
            indices = [waiting[place] for place in turn]
            rights, lefts = zip(*map(rows, indices), strict=True)
            pushed = self.apply(Direction.FORWARD, list(zip(indices, rights, strict=True)))
            pulled = self.apply(Direction.TRANSPOSED, list(zip(indices, lefts, strict=True)))
            yield list(zip(indices, pushed, pulled, strict=True))

    def repeats(self, direction: Direction, index: int, rows: Tensor, products: Tensor, scale: float) -> bool:
        """Whether rows sent again give the same products, up to rounding: where not, the operator changes.

        Parameters
        ----------
        direction : Direction
        index : int
        rows : Tensor, shape (b, d_in) forward, (b, d_out) transposed
        products : Tensor
            Those of the first time, times ``scale``.
        scale : float
        """
        return self.alike(index, self.apply(direction, [(index, rows)])[0] * scale, products, scale)

    def alike(self, index: int, again: Tensor, products: Tensor, scale: float) -> bool:
        """Whether two products of one operator with the same rows, times ``scale``, agree up to rounding."""
        return agree(again, products, self.operator_dtype, max(self.shapes[index]), scale)

    def epsilon(self, index: int, length: float) -> float:
        """Return ε of products of this length; see :func:`~detjac_lanczos.solvers.rounding.epsilon_at`."""
        return epsilon_at(self.operator_dtype, length, max(self.shapes[index]))

    def lost(self, index: int, sigma: float) -> float:
        """Return what rounding does to products as long as σ₁ where they are too small for their type; else 0."""
        eps = self.epsilon(index, sigma)
        return rounding_of(eps, sigma) if eps > epsilon(self.operator_dtype) else 0.0

    def floor(self, index: int, sigma: float, passes: int) -> float:
        """Return the noise floor of products as long as σ₁, ``c ε σ₁ √passes``."""
        return noise_floor(self.epsilon(index, sigma), sigma, passes)

    def underflow(self, index: int, sigma: float) -> float:
        """Return what products may hide where all are zero; see :func:`~detjac_lanczos.solvers.rounding.underflow`."""
        return underflow(self.operator_dtype, sigma, max(self.shapes[index]))

    def overflows(self, index: int, sigma: Tensor) -> bool:
        """Whether a singular value is above the largest number of the working precision, which then is noted."""
        if not bool(torch.isinf(sigma).any()):
            return False
        self.nonfinite[index] = f"operator {index}: a singular value is above the largest number of {self.dtype}"
        return True

    def report(self) -> None:
        """Tell the callback of the latest pass, unless it was told."""
        self.reporter.tell(len(self.sweeps), sum(self.forward) + sum(self.transposed), sum(self.row_sweeps))

    def settle(self, timed: dict[str, float]) -> dict[str, float]:
        """Return what decisions are made of: what was ``timed`` now, or when a journaled solve first came here.

        What memory holds is one more thing of the kind: another machine, or hour, may say otherwise.
        """
        if self.journal is None:
            return timed
        known = self.journal.decision
        if not timed.keys() <= known.keys():
            known = timed | known
            self.journal.decide(known)
        return {name: known[name] for name in timed}

    def _begin(
        self,
        way: str,
        sent: list[Tensor],
        make: Callable[[], list[Tensor]],
        direction: Direction,
        blocks: Sequence[tuple[int, Tensor]] = (),
    ) -> _Pass:
        """Make a pass, or take it from the journal, which then is held against the operators of ``blocks``."""
        self.report()
        began = time.perf_counter()
        known = None if self.journal is None else self.journal.read(way, sent, self.device)
        if known is not None:
            self._recognition.hold(direction, blocks, known[0])
            return _Pass(known[0], began, known[1])
        products = make()
        if not isinstance(products, list | tuple):
            raise OperatorError(f"a {way} pass returned a {type(products).__name__}: a list of tensors is needed")
        return _Pass(products, began, None)

    def _end(self, way: str, sent: list[Tensor], made: _Pass, rows: float) -> None:
        seconds = made.seconds
        if seconds is None:
            seconds = time.perf_counter() - made.began
            if self.journal is not None:
                self.journal.write(way, sent, made.products, seconds)
        else:
            self._earlier += seconds
        self.sweeps.append((rows, seconds))

    def _checked(self, index: int, direction: Direction, width: int, product: Tensor) -> Tensor:
        d_out, d_in = self.shapes[index]
        expected = (d_out if direction is Direction.FORWARD else d_in, width)
        where = f"operator {index}, {direction.value} pass {self.passes[index]}"
        if fault := product_fault(product, expected, self.operator_dtype, self.device):
            raise OperatorError(f"{where}: the product is {fault}")
        if index not in self.nonfinite and not bool(torch.isfinite(product).all()):
            self.nonfinite[index] = f"{where}: the product holds NaN or infinite values"
        return product.T.to(self.dtype, copy=True, memory_format=torch.contiguous_format)


def _cloned(blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return blocks that an operator may overwrite: those of the caller are vectors of a basis."""
    return [block.clone() for block in blocks]

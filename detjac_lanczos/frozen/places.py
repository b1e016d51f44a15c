"""Where a Jacobian begins and ends: the residual stream entering a block, a branch, the output, a probe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.indices import whole_number

Role = Literal["attention", "mlp"]
Kind = Literal[Role, "layer", "output", "residual", "logits", "probe"]


@dataclass(frozen=True, eq=False)
class Place:
    """A place in the network; made by `layer`, `attention`, `mlp`, `probe` or from a name.

    Attributes
    ----------
    kind : {"attention", "mlp", "layer", "output", "residual", "logits", "probe"}
    index : int or None
        The block, of a place in one.
    rows : Tensor or None
        Those of a probe.
    """

    kind: Kind
    index: int | None = None
    rows: Tensor | None = None

    def is_that(self, other: Place) -> bool:
        """Tell whether another is this place too: of probes, whether their rows are the same numbers.

        Parameters
        ----------
        other : Place

        Returns
        -------
        bool
        """
        named = (self.kind, self.index) == (other.kind, other.index)
        if not named or self.rows is None or other.rows is None or self.rows is other.rows:
            return named
        alike = (self.rows.dtype, self.rows.device) == (other.rows.dtype, other.rows.device)
        return alike and torch.equal(self.rows, other.rows)

    def __str__(self) -> str:
        """Return the place as a user types it."""
        if self.rows is not None:
            return f"probe({self.rows.shape[0]} rows)"
        return self.kind if self.index is None else f"{self.kind}({self.index})"

    __repr__ = __str__


def layer(index: int) -> Place:
    """As a source: the residual stream entering block ``index``. As a target: the stream after that block.

    Parameters
    ----------
    index : int
        From 0, or negative from the end; whether there is such a block shows where the place is used.

    Returns
    -------
    Place
    """
    return Place("layer", index)


def attention(index: int) -> Place:
    """Target: the attention branch of block ``index``, before its residual add.

    Parameters
    ----------
    index : int
        As in `layer`.

    Returns
    -------
    Place
    """
    return Place("attention", index)


def mlp(index: int) -> Place:
    """Target: the MLP branch of block ``index``, before its residual add.

    Parameters
    ----------
    index : int
        As in `layer`.

    Returns
    -------
    Place
    """
    return Place("mlp", index)


@torch.inference_mode(False)
def probe(rows: Tensor) -> Place:
    """Target: ``rows`` times the output.

    Parameters
    ----------
    rows : Tensor, shape (m, hidden size)
        One direction per row; copied, so that the place stays what it is when they change.

    Returns
    -------
    Place

    Raises
    ------
    InputError
        If they are no real, finite matrix.
    """
    if not isinstance(rows, Tensor):
        raise InputError(f"probe takes a torch tensor (m, hidden size), not {type(rows).__name__}")
    if rows.is_complex():
        raise InputError(f"probe takes real rows, not {rows.dtype}; probe the real and the imaginary part apart")
    if not bool(torch.isfinite(rows).all()):
        raise InputError("probe was given rows with a NaN or an infinity")
    if rows.ndim != 2:
        raise InputError(f"probe needs a matrix (m, hidden size), one direction per row; got shape {tuple(rows.shape)}")
    return Place("probe", rows=rows.detach().clone())


_NAMED = {"output": Place("output"), "residual": Place("residual"), "logits": Place("logits")}
_IN_BLOCKS = {"layer": layer, "attention": attention, "mlp": mlp}
_CALL = re.compile(r"\s*(layer|attention|mlp)\s*\(\s*(-?\d+)\s*\)\s*")


def parse_place(text: str) -> str | Place:
    """Return ``layer(12)`` and its like, as text, as a `Place`; other names as they are, for `detach` to judge.

    Raises
    ------
    InputError
        If the text has brackets but is no place.
    """
    if found := _CALL.fullmatch(text):
        return _IN_BLOCKS[found[1]](int(found[2]))
    if "(" in text or text in _IN_BLOCKS:
        raise InputError(
            f"{text!r} is no place in the network; write embeddings or layer(12) for a source, output, residual, "
            "logits, layer(12), attention(3) or mlp(5) for a target; probes are for Python alone"
        )
    return text.strip()


def source_block(source: str | Place, blocks: int) -> int:
    """Return the index of the first block of a source; −1 for the embeddings, before whatever leads to block 0."""
    if source == "embeddings":
        return -1
    if isinstance(source, Place) and source.kind == "layer":
        return _checked(source.index, blocks, "source")
    raise InputError(f"source must be 'embeddings' or layer(l), not {source!r}{_hint(source)}")


def target_place(target: str | Place, blocks: int) -> Place:
    """Return a target with its layer index made non-negative and in range."""
    if isinstance(target, Place):
        if target.kind not in _IN_BLOCKS:
            return target
        return Place(target.kind, _checked(target.index, blocks, "target"))
    if isinstance(target, str) and target in _NAMED:
        return _NAMED[target]
    raise InputError(
        "target must be 'output', 'residual', 'logits', layer(l), attention(l), mlp(l) or probe(W), "
        f"not {target!r}{_hint(target)}"
    )


def _hint(place: object) -> str:
    return "; import the function and give what it returns" if isinstance(place, str) and "(" in place else ""


def check_reach(source: int, target: Place, output_size: int) -> None:
    """Check that a target does not lie before the source, and that the rows of a probe fit the output.

    Raises
    ------
    InputError
        If one of them fails.
    """
    if target.index is not None and target.index < source:
        raise InputError(f"the target {target} lies before the source layer({source}); choose a later target")
    if target.rows is not None and target.rows.shape[1] != output_size:
        raise InputError(f"probe rows have width {target.rows.shape[1]}, the output has {output_size}")


def _checked(index: int | None, blocks: int, what: str) -> int:
    found = whole_number(index)
    if found is None or not -blocks <= found < blocks:
        raise InputError(f"{what} layer {index!r} does not exist; this model has blocks 0..{blocks - 1}")
    return found % blocks

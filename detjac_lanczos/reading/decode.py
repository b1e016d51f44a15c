"""What singular vectors say in tokens: left vectors through the head, right vectors by the nearest input embeddings."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, UnsupportedModelError
from detjac_lanczos.frozen.indices import whole_number
from detjac_lanczos.frozen.maps import Bias, apply_from_afar
from detjac_lanczos.frozen.places import Place, target_place
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.prompt import decode
from detjac_lanczos.models.linear_modules import embedding_table
from detjac_lanczos.operators import DetachedNetwork
from detjac_lanczos.reading.head import head_of
from detjac_lanczos.reading.table_search import Found, best_rows
from detjac_lanczos.solvers.options import is_whole

HEADLESS = ("logits", "probe")
"""Kinds of targets whose vectors are read as they stand, through no head."""


@dataclass(frozen=True)
class Decoded:
    """A token that a vector decodes to.

    Attributes
    ----------
    token : str
        Its exact text; "row 3" of a probe.
    id : int
    score : float
        Left vectors: share of softmax, or square of the entry of a probe; right ones: cosine.
    logit : float or None
        Raw logit of the unit vector, or the entry of a probe; None for right vectors.
    """

    token: str
    id: int
    score: float
    logit: float | None = None


@in_own_precision
def decode_left(
    network: DetachedNetwork, U: Tensor, y: Tensor, target: str | Place, top: int = 10, row: int = -1
) -> tuple[list[list[Decoded]], Tensor]:
    """Decode left singular vectors through the head.

    The sign of each vector is fixed so that u · y > 0. Vectors at the output meet the head directly. Vectors in the
    residual stream (targets "residual", layer, attention, mlp) first pass the frozen final norm, or what else a model
    has there, and are made unit again: the logit lens. With target "logits" the vector is its own logits. With a probe,
    the entries of the vector are read as they stand: token "row 3", score u_j² (they sum to 1), logit u_j.

    Parameters
    ----------
    network : DetachedNetwork
    U : Tensor, shape (d_out, k)
        Unit columns; any number of them, so that many tokens may be decoded in one pass over the vocabulary.
    y : Tensor, shape (d_out,)
        The target's value in the forward pass.
    target : str or Place
        Where the vectors live: the target of their Jacobian.
    top : int
    row : int
        The vectors' output position, counted over all prompts of the network one after another, or negative from the
        end: the final norm and the length of the output are those of this row.

    Returns
    -------
    decoded : list of k lists of Decoded
        Best first. ``score`` is the share of softmax that the token would have if the output pointed along the vector
        at its present length: the model's own logits (scale, bias, softcap) of ‖output‖ u. ``logit`` is that of u
        itself, without bias and softcap. (The softmax of the logits of a unit vector is all but uniform.)
    signs : Tensor, shape (k,), of ±1
        Multiply the columns of U and of V by these before storing them.

    Raises
    ------
    InputError
        If U or y is no tensor, the shapes do not fit together or are not those of the target, ``top`` is no number of
        tokens, or the target or the row does not exist.
    UnsupportedModelError
        As in `head_of`; never for logits and probes, which need no head.
    """
    place = target_place(target, network.blocks)
    kind, width = place.kind, network.width_at(place)
    _check_kinds("decode_left", top, U=U, y=y)
    if U.ndim != 2 or y.shape != U.shape[:1] or len(y) != width:
        raise InputError(
            f"decode_left takes U (d_out, k) and y (d_out,), d_out = {width} at {place}; got {tuple(U.shape)} and "
            f"{tuple(y.shape)}"
        )
    row = _checked_row(network, row)
    signs = torch.where(y.to(U) @ U < 0, -1.0, 1.0).to(U)
    vectors = (U * signs).to(torch.promote_types(U.dtype, torch.float32))
    if kind == "probe":
        return [_probe_rows(column, top) for column in vectors.T], signs
    if kind not in ("output", "logits"):
        vectors = _through_final_norm(network, vectors, row)
        y = _output_at(network, row)
    length = float(y.double().norm())
    scale = 1.0
    if kind == "logits":
        best = vectors.topk(min(top, len(vectors)), dim=0)
        found = Found(best.values, best.indices, (length * vectors).softmax(dim=0).gather(0, best.indices))
    else:
        head = head_of(network)
        scale = head.scale
        found = best_rows(
            head.table, vectors, top, logits=lambda p, a, b: head.logits(length * p, a, b), softcap=head.softcap
        )
    return [
        [
            Decoded(decode(network.loaded, int(i)), int(i), float(share), scale * float(product))
            for i, share, product in zip(found.ids[:, j], found.shares[:, j], found.scores[:, j], strict=True)
        ]
        for j in range(vectors.shape[1])
    ], signs


@in_own_precision
def decode_right(network: DetachedNetwork, V: Tensor, top: int = 10) -> list[list[Decoded]]:
    """Decode right singular vectors to the nearest input embeddings by cosine: exact, over the whole vocabulary.

    Parameters
    ----------
    network : DetachedNetwork
    V : Tensor, shape (d, k)
        Of any source: a vector in the residual stream of a later layer is compared with the input embeddings all the
        same, by what it would be called at the input. Where the stream has not the width of the embeddings (OPT-350m),
        they are taken as they enter it, projected.
    top : int

    Returns
    -------
    list of k lists of Decoded
        Nearest first; ``score`` is the cosine.

    Raises
    ------
    InputError
        If V is no tensor, ``top`` is no number of tokens, or V does not live in the embeddings or the residual stream
        of one token; cut the vectors of a joint operator token by token.
    UnsupportedModelError
        If V lives in a stream of another width than the embeddings, in a model that no family declares.
    """
    _check_kinds("decode_right", top, V=V)
    table = embedding_table(network.model_of_pass.get_input_embeddings())
    widths = dict.fromkeys((table.shape[1], network.hidden_size))
    if V.ndim != 2 or V.shape[0] not in widths:
        raise InputError(
            f"decode_right takes V ({' or '.join(map(str, widths))}, k); got {tuple(V.shape)}; "
            "cut joint vectors token by token"
        )
    through = None if V.shape[0] == table.shape[1] else partial(_into_the_stream, network)
    found = best_rows(table, V, top, cosine=True, through=through)
    return [
        [
            Decoded(decode(network.loaded, int(i)), int(i), float(cosine))
            for i, cosine in zip(found.ids[:, j], found.scores[:, j], strict=True)
        ]
        for j in range(V.shape[1])
    ]


def _check_kinds(function: str, top: object, **tensors: object) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{function} takes {name} as a tensor; got {type(value).__name__}")
    if not is_whole(top) or top < 0:
        shown = repr(top) if isinstance(top, int | float) else type(top).__name__
        raise InputError(f"{function} takes top, a whole number of tokens of 0 or more; got {shown}")


def _checked_row(network: DetachedNetwork, row: object) -> int:
    rows, found = len(network.streams.output), whole_number(row)
    if found is None or not -rows <= found < rows:
        raise InputError(f"row {row!r} does not exist; the prompts of this network have rows 0..{rows - 1} in all")
    return found % rows


def _output_at(network: DetachedNetwork, row: int) -> Tensor:
    """Return the output in a row counted over all prompts, an altered network's own: (d_out,)."""
    prompt = bisect(network.starts, row) - 1
    return network.value(Place("output"), prompt, row - network.starts[prompt])


def _into_the_stream(network: DetachedNetwork, rows: Tensor) -> Tensor:
    """Pass rows of the embedding table through the linear part of what leads to the first block: (N, d_e) to (N, d)."""
    if network.route == "autograd":
        raise UnsupportedModelError(
            f"how the embeddings of {network.family.name} enter its stream, which has another width, is not known: no "
            "family declares it; take the Jacobians from the embeddings"
        )
    chain = [step for step in network.stages[0].branches[0].chain if not isinstance(step, Bias)]
    return apply_from_afar(chain, rows.to(network.dtype), torch.zeros(len(rows), dtype=torch.long, device=rows.device))


def _through_final_norm(network: DetachedNetwork, vectors: Tensor, row: int) -> Tensor:
    """Pass columns (d, k) through the linear part of the final norm as it is frozen at a row; unit columns again."""
    chain = [step for step in network.tail.branches[0].chain if not isinstance(step, Bias)]
    rows = torch.full((vectors.shape[1],), row, device=network.device)
    out = apply_from_afar(chain, vectors.T.to(network.device, network.dtype), rows).T.to(vectors)
    return out / out.norm(dim=0).clamp_min(torch.finfo(out.dtype).tiny)


def _probe_rows(column: Tensor, top: int) -> list[Decoded]:
    order = column.abs().topk(min(top, len(column))).indices
    return [Decoded(f"row {int(i)}", int(i), float(column[i] ** 2), float(column[i])) for i in order]

"""From the rows of a padded batch to prompts without padding, at the positions the padded pass gives their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from detjac_lanczos.errors import InputError, shortage
from detjac_lanczos.models.loaded import rotary_parameters

Positions = tuple[int, ...]


def rows_of(value: Any, axes: int) -> list[Tensor] | None:
    """Return the rows of a batch, each with ``axes`` axes, from one row, a tensor or a list; None if there are none."""
    try:
        if isinstance(value, list | tuple) and any(isinstance(row, list | tuple | Tensor) for row in value):
            rows = [_tensor(row) for row in value]
        else:
            whole = _tensor(value)
            rows = [whole] if whole.ndim == axes else list(whole)
    except (ValueError, TypeError, RuntimeError) as error:
        if shortage(error):
            raise
        return None
    return rows if rows and all(row.ndim == axes for row in rows) else None


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")


def unpadded(
    rows: Sequence[Tensor], attention_mask: Any, position_ids: Any, config: Any, *, positions_from_mask: bool
) -> Iterator[tuple[Tensor, Positions | None]]:
    """Yield the real tokens of each row, and their positions where these are not 0, 1, 2, ...

    Parameters
    ----------
    rows : sequence of Tensor, shape (positions, ...) each
    attention_mask, position_ids : as in `detach`
    config
        Of the text model.
    positions_from_mask : bool
        Whether the model counts the real tokens by itself; others count the padding on the left too.

    Raises
    ------
    InputError
        If masks or positions do not fit the rows, a row has a hole or nothing but padding, or this model computes
        something else for a padded row.
    """
    lengths = [len(row) for row in rows]
    masks = _per_row(attention_mask, "attention_mask", lengths)
    positions = _per_row(position_ids, "position_ids", lengths)
    real = [_real(mask.tolist(), i) for i, mask in enumerate(masks)] if masks else [slice(0, n) for n in lengths]
    if positions and any(row.is_floating_point() or row.dtype is torch.bool for row in positions):
        raise InputError("position_ids must be integers, one for each token, padding included")
    counted = [row.tolist() for row in positions] if positions else [list(range(n)) for n in lengths]
    if masks:
        _require_indifference(config, counted, real)
    for row, tokens, count in zip(rows, real, counted, strict=True):
        default = tokens.start == 0 or positions_from_mask
        yield row[tokens], None if default and not positions else tuple(count[tokens])


def _per_row(value: Any, name: str, lengths: list[int]) -> list[Tensor] | None:
    if value is None:
        return None
    rows = rows_of(value, axes=1)
    if rows is not None and len(rows) == 1 and name == "position_ids":
        rows = rows * len(lengths)
    if rows is None or [len(row) for row in rows] != lengths:
        raise InputError(
            f"{name} must have one entry for each token, padding included: rows of {', '.join(map(str, lengths))}"
        )
    return rows


def _real(mask: list[Any], prompt: int) -> slice:
    """Return where the real tokens of a row lie."""
    if not set(mask) <= {0, 1}:
        raise InputError("attention_mask must hold 1 for a real token and 0 for padding, and nothing else")
    if 1 not in mask:
        raise InputError(f"attention_mask: row {prompt} is all padding; leave it out")
    start, stop = mask.index(1), len(mask) - mask[::-1].index(1)
    if not all(mask[start:stop]):
        hole = start + mask[start:].index(0)
        raise InputError(f"attention_mask: row {prompt} has a hole at {hole}; pad on the left or on the right only")
    return slice(start, stop)


def _require_indifference(config: Any, counted: list[list[int]], real: list[slice]) -> None:
    """Refuse a padded batch in which a row depends on more than its own tokens and their positions."""
    last = max(map(max, counted))
    for kind, original in _lengths_that_turn(config):
        if last >= original and any(max(c[r]) != last for c, r in zip(counted, real, strict=True)):
            raise InputError(
                f"{kind} frequencies follow the longest row from {original} tokens on; give the prompts without padding"
            )
    scale = getattr(config, "floor_scale", None) if getattr(config, "attn_temperature_tuning", False) else None
    if scale is not None and any(r.start and r.stop >= scale for r in real):
        raise InputError(
            f"this model scales queries by their place in the padded row from {scale} tokens on; pad on the right"
        )


def _lengths_that_turn(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the lengths from which rotary frequencies follow the length of a row, with their kind."""
    for rope in rotary_parameters(config):
        kind = rope.get("rope_type", "default")
        if kind == "longrope" or "dynamic" in kind:
            yield kind, int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)

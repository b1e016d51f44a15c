"""How wide rows are behind a chain, from the shapes of its maps alone."""

from collections.abc import Sequence

from detjac_lanczos.frozen.maps import Bias, ColumnScale, Gate, Linear, Map, Mix, Nested


def width_after(chain: Sequence[Map], width: int) -> int:
    """Return how wide rows of a width leave a chain that is not transposed.

    Raises
    ------
    ValueError
        If a map takes rows of another width, or sums rows of several.
    """
    for step in chain:
        takes = gives = width
        match step:
            case Linear():
                gives, takes = step.weight.shape
            case Gate():
                takes = gives = step.g.shape[1]
            case ColumnScale(w=values) | Bias(b=values) if values.ndim:
                takes = gives = values.shape[-1]
            case Mix():
                if width % step.kv_heads:
                    raise ValueError(f"rows {width} wide have no {step.kv_heads} heads")
                gives = width // step.kv_heads * step.heads
            case Nested():
                ends = {width_after(part, width) for part in step.chains} or {width}
                if len(ends) > 1:
                    raise ValueError(f"the widths {sorted(ends)} are summed")
                gives = ends.pop()
        if takes != width:
            raise ValueError(
                f"it takes rows {takes} wide and is given {width}; a word is missing or names another module or part"
            )
        width = gives
    return width

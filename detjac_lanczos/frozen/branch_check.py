"""What each block adds to the residual stream, held against what its branches are declared to give."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.declare import Family, Stream


def require_branches(
    family: Family, blocks: Sequence[nn.Module], outputs: Mapping[str, list[Tensor]], stream: Sequence[Tensor]
) -> None:
    """Check that blocks add to the stream what the outputs of their branches say, but for the rounding of the sum.

    Parameters
    ----------
    family : Family
        Blocks with words on the stream itself add something else, and are left alone.
    blocks : sequence of torch.nn.Module
    outputs : mapping of str to list of Tensor, shape (1, d)
        "attention.3" and so on: the last row of every prompt.
    stream : sequence of Tensor, shape (prompts, d)
        Entering each block and behind the last, in the same rows.

    Raises
    ------
    UnsupportedModelError
        Naming the first block that adds something else.
    """
    branches = list(family.branches)
    if not branches or any(isinstance(stage, Stream) for stage in family.block):
        return
    for index, (block, before, after) in enumerate(zip(blocks, stream, stream[1:], strict=False)):
        terms = [before.double()]
        for branch in branches:
            with family.fits(f"blocks.{index}", f"scale={branch.scale!r}"):
                factor = branch.factor(block)
            rows = outputs.get(f"{branch.role}.{index}", [before[:0]])
            terms.append(factor * torch.cat(rows).to(before.device).double())
        allowed = 8 * torch.finfo(before.dtype).eps * sum(float(term.norm()) for term in terms)
        if any(term.shape != before.shape for term in terms) or not float((sum(terms) - after).norm()) <= allowed:
            added = " + ".join(f"{branch.scale} * {branch.output}".removeprefix("None * ") for branch in branches)
            raise UnsupportedModelError(
                f"blocks.{index} is not built as {family.name} is: it adds something else to the stream than {added}; "
                "see the output and the scale of each branch"
            )

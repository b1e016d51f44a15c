"""What the words of a family record in a capture, each coefficient where the plan has it lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detjac_lanczos.frozen.mapped import let_go, mapped_zeros
from detjac_lanczos.frozen.plan import Plan
from detjac_lanczos.frozen.ways import Kind, Way


class Tape:
    """One tensor for each name, over the positions of all prompts, or for each name and prompt.

    Parameters
    ----------
    plan : Plan, optional
        Without one everything is kept in memory.
    lengths : sequence of int
        Positions of each prompt.

    Attributes
    ----------
    prompt, start : int
        Which prompt is running, and its first position, counted over all of them.
    """

    def __init__(self, plan: Plan | None, lengths: Sequence[int]) -> None:
        self.plan, self.lengths = plan, tuple(lengths)
        self.start = self.prompt = 0
        self._parts: dict[str, list[Tensor]] = {}
        self._whole: dict[str, Tensor] = {}
        self._seen: set[str] = set()

    def way(self, kind: Kind, name: str) -> Way:
        """Return what is planned for a kind in the block that a name belongs to."""
        room, _, rest = name.partition(".")
        if self.plan is None or room != "blocks":
            return "keep"
        return self.plan.way(kind, int(rest.partition(".")[0]))

    def __call__(self, name: str, value: Tensor, kind: Kind | None = None, *, as_is: bool = False) -> None:
        """Keep a value of the prompt that is running, (positions, ...), in float32 at least; the first of its name."""
        if name in self._seen:
            return
        self._seen.add(name)
        if value.is_floating_point() and not as_is:
            value = value.to(torch.promote_types(value.dtype, torch.float32))
        if kind is None or (len(self.lengths) == 1 and self.way(kind, name) != "offload"):
            self._parts.setdefault(name, []).append(value)
            return
        if name not in self._whole:
            shape = (sum(self.lengths), *value.shape[1:])
            self._whole[name] = self.room(name, kind, shape, value.dtype, value.device)
        whole = self._whole[name]
        whole[self.start : self.start + len(value)] = value.to(whole.device)

    def alone(self, name: str, value: Tensor) -> None:
        """Keep a tensor of the prompt that is running alone, as it is; the prompt is part of its name."""
        self._whole[name] = value

    def room(self, name: str, kind: Kind, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return zeros to be filled: on the device or, where the plan offloads them, in host memory or in a file."""
        if self.way(kind, name) != "offload":
            zeros = torch.zeros(tuple(shape), dtype=dtype, device=device)
        elif device.type == "cuda":
            zeros = torch.zeros(tuple(shape), dtype=dtype, device="cpu", pin_memory=True)
        else:
            let_go(self._whole.values())
            zeros = mapped_zeros(shape, dtype)
        self._whole[name] = zeros
        return zeros

    def next_prompt(self) -> None:
        """Go on to the next prompt."""
        self.start += self.lengths[self.prompt]
        self.prompt += 1
        self._seen.clear()

    def coefficients(self) -> dict[str, Tensor]:
        """Return everything recorded and forget it."""
        named, self._whole = self._whole, {}
        for name in list(self._parts):
            parts = self._parts.pop(name)
            named[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return named

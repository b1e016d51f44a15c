"""Memory in huge pages: 2 MB for each address that the processor has to look up, where pages of 4 kB have 512."""

import mmap
from contextlib import suppress

import torch
from torch import Tensor

AVAILABLE = hasattr(mmap, "MADV_HUGEPAGE")
"""Whether this system can be asked for them (Linux). Where it has none left, or gives none, pages are small."""

_SIZE = 2 << 20


class HugePages:
    """Memory that tensors are copied into, one after another. It is given back when the last of them is gone.

    Parameters
    ----------
    nbytes : int
        Room for all of them, in bytes.
    alignment : int
        In bytes; each copy begins on a multiple of it.
    """

    def __init__(self, nbytes: int, alignment: int) -> None:
        self._memory = mmap.mmap(-1, nbytes + _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._alignment = alignment
        self._next = -torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr() % _SIZE

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy of a tensor, with a storage of its own."""
        room = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=self._next)
        self._next += rounded_up(tensor.nbytes, self._alignment)
        return room.view(tensor.shape).copy_(tensor)


def rounded_up(nbytes: int, alignment: int) -> int:
    """Return the multiple of the alignment from ``nbytes`` on."""
    return -(-nbytes // alignment) * alignment

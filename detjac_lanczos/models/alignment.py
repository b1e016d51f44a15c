"""Tensors that begin where vector loads do, in huge pages: 2 MB for each address that is looked up, not 4 kB."""

import mmap
from contextlib import suppress

import psutil
import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes: a cache line, and a vector of AVX-512. torch's own memory begins on such a boundary."""

HUGE_PAGES = hasattr(mmap, "MADV_HUGEPAGE")
"""Whether this system can be asked for them (Linux). Where it has none left, or gives none, pages are small."""

_SIZE = 2 << 20


class HugePages:
    """Memory that tensors are copied into, one after another. It is given back when the last of them is gone.

    Parameters
    ----------
    nbytes : int
        Room for all of them, each rounded up, in bytes.
    """

    def __init__(self, nbytes: int) -> None:
        self._memory = mmap.mmap(-1, nbytes + _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._next = -torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr() % _SIZE

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy of a tensor on a boundary, with a storage of its own."""
        room = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=self._next)
        self._next += rounded_up(tensor.nbytes)
        return room.view(tensor.shape).copy_(tensor)


def rounded_up(nbytes: int) -> int:
    """Return the first boundary from ``nbytes`` on."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that begins on a boundary: itself, or a copy.

    What is mapped from a safetensors file begins where the header ends, anywhere; and the last bits of a product may
    depend on where its factors begin.
    """
    movable = type(tensor) is Tensor and tensor.is_cpu
    return tensor.clone() if movable and tensor.data_ptr() % ALIGNMENT else tensor


def align(model: nn.Module) -> None:
    """Move every float32 weight in a processor's memory to where products read it fastest, one after another.

    That is on a boundary, and in huge pages where there are some. Off it each vector lies in two cache lines:
    transposed products, which read weights in place, take 12 to 45 % longer up to 84 rows; in small pages they take 8
    to 12 % longer from a width of 1,152 on, at 56 rows, and forward products 5 % (Zen 5). Other dtypes are repacked by
    their products and take as long either way. More than half of this machine's memory stays where it is: in the file,
    which can be read again where memory is short.
    """
    weights = [w for w in model.parameters() if w.is_cpu and w.dtype is torch.float32 and w.numel()]
    if not weights or 2 * sum(weight.nbytes for weight in weights) > psutil.virtual_memory().total:
        return
    move = aligned
    if HUGE_PAGES:
        with suppress(OSError):  # no stretch of memory is as long
            move = HugePages(sum(rounded_up(weight.nbytes) for weight in weights)).copy
    for weight in weights:
        weight.data = move(weight.data)

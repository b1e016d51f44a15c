"""Products with a 4-bit weight: the twin's, or on a CUDA device by whichever of three roads is the fastest there.

``fused`` is our kernel: decoded tiles never leave the chip. ``dequantise`` decodes a part of the matrix that stays in
the second-level cache, multiplies it by the vendor's GEMM, and goes on. ``bitsandbytes`` is that library's own kernel
(forwards, and only for its two tables). All three multiply by the same decoded weights, rounded to the dtype of the
rows, so that forward and transposed products stay adjoint whichever is taken.

The choice is data, as in `detjac_kernels.roads`: `choices` returns the table, `replay` puts a recorded one in force,
`detjac_kernels.kept_choices` has what earlier processes measured.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Unpack
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from detjac_kernels import four_bit
from detjac_kernels.choice import AGREEMENT, ChoiceTable, Road, capturing, place, seconds_on_device, triton_runs
from detjac_kernels.four_bit import Packed4
from detjac_kernels.gemm import Around, surrounded
from detjac_kernels.kept_choices import kept_choices
from detjac_kernels.scratch import scratch

ROW_CLASSES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

TABLE = ChoiceTable(seconds_on_device, ("dequantise", "bitsandbytes", "fused"))
choices, replay, forget = TABLE.choices, TABLE.replay, TABLE.forget


def packed_linear(x: Tensor, packed: Packed4, **around: Unpack[Around]) -> Tensor:
    """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: see `detjac_kernels.four_bit.packed_linear`."""
    return product(x, packed, False, **around) if takes(x, packed) else four_bit.packed_linear(x, packed, **around)


def packed_linear_transposed(y: Tensor, packed: Packed4, **around: Unpack[Around]) -> Tensor:
    """Return the same with W in the place of Wᵀ: see `detjac_kernels.four_bit.packed_linear_transposed`."""
    if takes(y, packed):
        return product(y, packed, True, **around)
    return four_bit.packed_linear_transposed(y, packed, **around)


def takes(x: Tensor, packed: Packed4) -> bool:
    """Tell whether a product is one for these roads: on a CUDA device, with Triton there, whole blocks in every row."""
    if not triton_runs(x):
        return False
    from detjac_kernels.device.packed_linear import fits

    return fits(packed, x.dtype)


def product(x: Tensor, packed: Packed4, transposed: bool, **around: Unpack[Around]) -> Tensor:
    """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``, or W in the place of Wᵀ, by the best road."""
    if not len(x):
        return x.new_empty(0, packed.shape[1 if transposed else 0])
    bare = _bare(packed, transposed)
    roads: dict[str, Road] = {name: partial(surrounded, road, x, **around) for name, road in bare.items()}
    roads["fused"] = lambda: fused(x, packed, transposed, **around)
    key, kept = shape_class(x, packed, transposed), kept_choices("packed", x.device)
    return TABLE.run(key, roads, AGREEMENT[x.dtype], measure=not capturing(x), kept=kept)


def shape_class(x: Tensor, packed: Packed4, transposed: bool) -> str:
    """Return the class of a product: device, dtype, direction, rows rounded up, widths, kind of scales."""
    rows = next((size for size in ROW_CLASSES if len(x) <= size), ROW_CLASSES[-1])
    f, d = packed.shape
    widths = f"{f}->{d}" if transposed else f"{d}->{f}"
    kind = f"{packed.block}{'' if packed.nested is None else ' nested'}"
    return f"{place(x)}, {'yW' if transposed else 'xWt'} {rows}x{widths}, {kind}"


def fused(x: Tensor, packed: Packed4, transposed: bool, **around: Any) -> Tensor:
    """Run our kernel."""
    from detjac_kernels.device.packed_linear import packed_linear, packed_linear_transposed

    return (packed_linear_transposed if transposed else packed_linear)(x, packed, **around)


def dequantised(x: Tensor, packed: Packed4, transposed: bool) -> Tensor:
    """Decode the matrix part by part and multiply each while it is in cache: (R, d) to (R, f), or back.

    A part is some rows of W, or some columns when transposed: every output is made by one GEMM and rounded once.
    """
    from detjac_kernels.device.decode import decode_rectangle

    f, d = packed.shape
    out = x.new_empty(len(x), d if transposed else f)
    for part in parts(packed, transposed, cached_bytes(x.device) // x.element_size()):
        rows, columns = (range(f), part) if transposed else (part, range(d))
        block = scratch("part of a matrix", len(rows) * len(columns), x.dtype, x.device).view(len(rows), len(columns))
        decode_rectangle(packed, rows, columns, block)
        torch.mm(x, block if transposed else block.t(), out=out[:, part.start : part.stop])
    return out


def parts(packed: Packed4, transposed: bool, values: int) -> Iterator[range]:
    """Cut the outputs into ranges of at most ``values`` weights each, multiples of 64 as far as they go."""
    outputs, inputs = packed.shape[::-1] if transposed else packed.shape
    height = max(64, values // inputs // 64 * 64)
    for start in range(0, outputs, height):
        yield range(start, min(start + height, outputs))


@cache
def cached_bytes(device: torch.device) -> int:
    """Return the bytes of decoded weights that stay in the second-level cache while they are multiplied."""
    return torch.cuda.get_device_properties(device).L2_cache_size // 2 if device.type == "cuda" else 1 << 22


def by_bitsandbytes(x: Tensor, packed: Packed4) -> Tensor:
    """Run bitsandbytes' own forward product, in whichever way it chooses."""
    import bitsandbytes

    return bitsandbytes.matmul_4bit(x, packed.codes.view(-1, 1), quant_state=_quant_state(packed, x.dtype))


_kinds = WeakTensorKeyDictionary()
_states: WeakKeyDictionary[Packed4, dict[torch.dtype, Any]] = WeakKeyDictionary()


def kind_of(packed: Packed4) -> str | None:
    """Return what bitsandbytes calls a table; None where it is not there, or knows none such."""
    if packed.nested is not None and packed.nested.block != 256:
        return None
    table = packed.table  # of a part of a matrix as well, which is made anew for every product
    if table not in _kinds:
        _kinds[table] = None
        if find_spec("bitsandbytes") is not None:
            from bitsandbytes.functional import get_4bit_type

            for kind in ("nf4", "fp4"):
                if torch.allclose(table, get_4bit_type(kind, device=table.device), atol=1e-6):
                    _kinds[table] = kind
    found: str | None = _kinds[table]
    return found


def _quant_state(packed: Packed4, dtype: torch.dtype) -> Any:
    from bitsandbytes.functional import QuantState

    states = _states.setdefault(packed, {})
    if dtype not in states:
        nested, offset, outer = packed.nested, None, None
        if nested is not None:
            offset = torch.tensor(nested.offset, device=packed.codes.device)
            outer = QuantState(absmax=nested.absmax, code=nested.table, blocksize=nested.block, dtype=torch.float32)
        states[dtype] = QuantState(
            absmax=packed.absmax,
            shape=torch.Size(packed.shape),
            code=packed.table,
            blocksize=packed.block,
            quant_type=kind_of(packed),
            dtype=dtype,
            offset=offset,
            state2=outer,
        )
    return states[dtype]


def _bare(packed: Packed4, transposed: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the roads that know no prologue and no epilogue."""
    roads = {"dequantise": lambda x: dequantised(x, packed, transposed)}
    if not transposed and kind_of(packed) is not None:
        roads["bitsandbytes"] = lambda x: by_bitsandbytes(x, packed)
    return roads

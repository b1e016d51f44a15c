"""Linear modules of bitsandbytes: NF4, FP4 and LLM.int8, read from their own bytes.

Its functions are not used for this. Its 4-bit decoder on CPU is wrong for some widths, and its int8 product is no
linear map: activations are rounded too. What is meant by these weights is written in their bytes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from detjac_kernels.four_bit import Nested, Packed4
from detjac_kernels.gemm import Around
from detjac_kernels.packed_roads import packed_linear, packed_linear_transposed
from detjac_kernels.scratch import converted, scratch
from detjac_lanczos.errors import ModelError, UnsupportedModelError
from detjac_lanczos.models.decoded import DecodedWeight, PackedRows

_PRODUCTS = logging.getLogger("bitsandbytes.autograd._functions")
_ROUNDS = "MatMul8bitLt: inputs will be cast"


class FourBitWeight(DecodedWeight):
    """Rows of a 4-bit matrix; those of one run that begins with a block are multiplied as a matrix of their own."""

    packed: Packed4

    def apply(self, x: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((x ∘ scale) Wᵀ) ∘ gate) ∘ out_scale + add``: (R, d) to (R, f)."""
        whole = self._whole()
        return super().apply(x, **around) if whole is None else packed_linear(x, whole, **around)

    def apply_transposed(self, y: Tensor, **around: Unpack[Around]) -> Tensor:
        """Return ``(((y ∘ scale) W) ∘ gate) ∘ out_scale + add``: (R, f) to (R, d)."""
        whole = self._whole()
        if whole is None:
            return super().apply_transposed(y, **around)
        return packed_linear_transposed(y, whole, **around)

    def _whole(self) -> Packed4 | None:
        """Return these rows as a matrix of their own, in place, where they are one run that begins with a block."""
        matrix, (run, *others) = self.packed, self.runs
        (f, d), block = matrix.shape, matrix.block
        if others or run.step != 1 or run.start * d % block:
            return None
        if len(run) == f:
            return matrix
        # Scales that are quantised themselves are decoded for the call: their own blocks need not begin here.
        codes = matrix.codes[run.start * d // 2 : -(-run.stop * d // 2)]
        scales = matrix.scales(run.start * d // block, -(-run.stop * d // block))
        return Packed4(codes, scales, matrix.table, block, (len(run), d))


@dataclass(frozen=True, eq=False)
class EightBitRows:
    """LLM.int8: ``CB · (SCB / 127)``, a scale for each row."""

    codes: Tensor
    absmax: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input width, (f, d)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def device(self) -> torch.device:
        """Where its bytes lie."""
        return self.codes.device

    def decode(self, rows: range, dtype: torch.dtype) -> Tensor:
        """Return rows in a dtype: (len(rows), d); the next call overwrites them."""
        cut = slice(rows.start, rows.stop, rows.step)
        flat = scratch("decoded", len(rows) * self.shape[1], torch.float32, self.device)
        values = flat.view(len(rows), self.shape[1]).copy_(self.codes[cut])
        return converted(values.mul_(self.absmax[cut, None] / 127), dtype)


def kind_of(module: nn.Module) -> str | None:
    """Return "4-bit" or "8-bit" for a linear module of bitsandbytes, else None."""
    names = {cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("bitsandbytes.")}
    return "4-bit" if "Linear4bit" in names else "8-bit" if "Linear8bitLt" in names else None


def is_quantised(module: Any) -> bool:
    """Tell whether a linear module of bitsandbytes holds codes already, and no plain numbers."""
    return module.weight.dtype is torch.int8 if kind_of(module) == "8-bit" else _state_of(module) is not None


def rows_of(module: nn.Module, name: str) -> PackedRows:
    """Return the packed rows of a linear module of bitsandbytes.

    Raises
    ------
    UnsupportedModelError
        If it is not quantised yet, was repacked for the CPU, or has not the bytes that its shape asks for.
    ModelError
        If scales that are quantised themselves have no finite offset.
    """
    return _four_bit(module, name) if kind_of(module) == "4-bit" else _eight_bit(module, name)


def description_of(module: nn.Module) -> str:
    """Return the format of a module in words: "NF4", "FP4 with double quantisation", "LLM.int8"."""
    if kind_of(module) == "8-bit":
        return "LLM.int8"
    state = _state_of(module)
    return f"{str(state.quant_type).upper()}{' with double quantisation' if state.nested else ''}"


def require_not_repacked(model: nn.Module) -> None:
    """Refuse 4-bit weights that a forward pass has rewritten for the CPU; even reading their state would change them.

    Raises
    ------
    UnsupportedModelError
        Naming the first such module.
    """
    for name, module in model.named_modules():
        if kind_of(module) == "4-bit" and getattr(_state_of(module), "packing_format_for_cpu", False):
            raise UnsupportedModelError(
                f"{name}: bitsandbytes has repacked its 4-bit weights for this CPU, with rounded scales (a forward "
                "pass did); load the model again and set module.support_avx512bf16_for_cpu = False on its Linear4bit "
                "modules before running it"
            )


@contextmanager
def rounding_unsaid() -> Iterator[None]:
    """Keep from the log, for this thread, what bitsandbytes says at every 8-bit product: that it rounds to float16.

    Results tell how far such products are from those with the decoded weights. Other threads are told as ever.
    """
    here = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != here or not str(record.msg).startswith(_ROUNDS)

    _PRODUCTS.addFilter(others)
    try:
        yield
    finally:
        _PRODUCTS.removeFilter(others)


def leave_weights_alone(copied: nn.Module, name: str) -> None:
    """Have a module of a structural copy write nothing to the tensors that it shares when it runs.

    Raises
    ------
    UnsupportedModelError
        If it cannot run: its weight is tied to one that is no packed one.
    """
    module: Any = copied
    kind = kind_of(module)
    if kind is None:
        return
    if type(module.weight) is nn.Parameter and not is_quantised(module):
        raise _unquantised(module, name)
    if kind == "4-bit":
        module.support_avx512bf16_for_cpu = False
    else:
        # Running moves CB and SCB from the parameter to the module: the copy needs a parameter of its own, with scales.
        w = module.weight
        scales = module.state.SCB if w.SCB is None else w.SCB
        own = type(w)(w.data, requires_grad=False, has_fp16_weights=w.has_fp16_weights, CB=w.CB, SCB=scales)
        module.weight = own
    if module.bias is not None:
        # Running converts the bias in place, as .data of this parameter.
        module.bias = nn.Parameter(module.bias.detach(), requires_grad=False)


def _state_of(module: Any) -> Any:
    state = getattr(module.weight, "quant_state", None)
    return getattr(module, "quant_state", None) if state is None else state


def _four_bit(module: Any, name: str) -> Packed4:
    state, stored = _state_of(module), module.weight.detach().as_subclass(Tensor)
    if state is None:
        raise _unquantised(module, name)
    require_not_repacked(module)
    f, d = state.shape
    nested = None
    if state.nested:
        inner = state.state2
        if not torch.isfinite(state.offset):
            raise ModelError(f"{name}: the offset of its scales is not finite; get a sound copy of the model")
        nested = Nested(inner.code.float(), inner.absmax.float(), inner.blocksize, float(state.offset))
    codes = stored.contiguous().view(-1).view(torch.uint8)[: -(-f * d // 2)]
    absmax = state.absmax if state.nested else state.absmax.float()
    try:
        return Packed4(codes, absmax, state.code.float(), state.blocksize, (f, d), nested)
    except ValueError as error:
        raise UnsupportedModelError(f"{name}: {error}; get a sound copy of the model") from error


def _eight_bit(module: Any, name: str) -> EightBitRows:
    codes, own = module.weight.detach().as_subclass(Tensor), getattr(module.weight, "SCB", None)
    absmax = module.state.SCB if own is None else own
    if codes.dtype is not torch.int8 or absmax is None:
        raise _unquantised(module, name)
    return EightBitRows(codes, absmax.detach().flatten().float())


def _unquantised(module: Any, name: str) -> UnsupportedModelError:
    """Say what would quantise a module that is not: which depends on why it is not."""
    if type(module.weight) is nn.Parameter:
        how = (
            "its weight is another module's, kept in full, which bitsandbytes cannot multiply by; name it in "
            "llm_int8_skip_modules, or load the model with tie_word_embeddings=False"
        )
    elif getattr(module.weight, "has_fp16_weights", False):
        how = (
            "it keeps its weight in full and rounds it anew in every pass; load the model with "
            "llm_int8_has_fp16_weight=False"
        )
    else:
        how = "move the model to its device, that quantises it"
    return UnsupportedModelError(f"{name} is not quantised: {how}")

"""The device side of `detjac_kernels.captures`: one pass over memory for a norm, or a gate, and its frozen factor."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detjac_kernels.captures import Activation
from detjac_kernels.device.launching import launch

WIDEST = 32768
"""Columns of a norm that one program holds in registers."""

GATE_BLOCK = 1024


@triton.jit
def rms_norm_kernel(x, weight, normed, rstd, d, stride_x, eps, PLUS_ONE: tl.constexpr, BLOCK: tl.constexpr):
    """Make one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    values = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    factor = 1 / tl.sqrt(tl.sum(values * values, axis=0) / d + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if PLUS_ONE:
        scale += 1
    tl.store(rstd + row, factor)
    tl.store(normed + row * d + column, (values * factor * scale).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(
    gate,
    up,
    rstd,
    product,
    factor,
    f,
    stride_gate,
    stride_up,
    TANH: tl.constexpr,
    RSTD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Make a part of one row. ``gelu_tanh(z)`` is ``z · sigmoid(√(8/π) (z + 0.044715 z³))``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < f
    z = tl.load(gate + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(up + row * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    inner = 1.5957691216057308 * (z + 0.044715 * z * z * z) if TANH else z
    active = z / (1 + tl.exp(-inner))
    tl.store(product + row * f + column, (active * other).to(product.dtype.element_ty), mask=inside)
    if RSTD:
        active *= tl.load(rstd + row)
    tl.store(factor + row * f + column, active.to(factor.dtype.element_ty), mask=inside)


def captured_rms_norm(x: Tensor, weight: Tensor, eps: float, *, plus_one: bool = False) -> tuple[Tensor, Tensor]:
    """Return the output and the factor, as the twin in `detjac_kernels.captures`; at most `WIDEST` columns."""
    n, d = x.shape
    if d > WIDEST:
        raise ValueError(f"a norm of {d} columns does not fit into one program; {WIDEST} do")
    x = x if x.stride(1) == 1 else x.contiguous()
    normed, rstd = x.new_empty(n, d), x.new_empty(n, dtype=torch.float32)
    if n:
        launch(
            rms_norm_kernel,
            (n,),
            x,
            weight.contiguous(),
            normed,
            rstd,
            d,
            x.stride(0),
            eps,
            PLUS_ONE=plus_one,
            BLOCK=triton.next_power_of_2(d),
            num_warps=norm_warps(d),
        )
    return normed, rstd


def captured_gate(
    gate: Tensor, up: Tensor, activation: Activation, *, rstd: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the product and the factor, as the twin in `detjac_kernels.captures`."""
    n, f = gate.shape
    gate = gate if gate.stride(1) == 1 else gate.contiguous()
    up = up if up.stride(1) == 1 else up.contiguous()
    product = up.new_empty(n, f)
    factor = gate.new_empty(n, f, dtype=gate.dtype if rstd is None else torch.float32)
    if gate.numel():
        launch(
            gate_kernel,
            (n, triton.cdiv(f, GATE_BLOCK)),
            gate,
            up,
            product if rstd is None else rstd.contiguous(),
            product,
            factor,
            f,
            gate.stride(0),
            up.stride(0),
            TANH=activation == "gelu_tanh",
            RSTD=rstd is not None,
            BLOCK=GATE_BLOCK,
            num_warps=4,
        )
    return product, factor


def norm_warps(d: int) -> int:
    """Return how many warps share a row: about 16 values a thread, 32 in the widest."""
    return min(32, max(4, triton.next_power_of_2(d) // 512))

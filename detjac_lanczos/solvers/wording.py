"""Numbers in few digits; those of a claim never say more than the number itself."""

import math

from torch import Tensor

_SHOWN = 8


def rounded_up(value: float) -> str:
    """Two digits and an exponent, never below the value itself; 0 and inf as they are."""
    if value == 0.0 or math.isinf(value):
        return f"{value:g}"
    text = f"{value:.1e}"
    if float(text) < value:
        step = 10.0 ** int(text.split("e")[1]) / 10
        text = f"{float(text) + step:.1e}"
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"


def ratio_up(value: float) -> str:
    """Two decimals where the value is of the size of 1, never below it; two digits and an exponent elsewhere."""
    return f"{math.ceil(value * 100) / 100:.2f}" if 0.01 <= value < 100 else rounded_up(value)


def values_in_line(S: Tensor) -> str:
    """Return values as a line shows them, the middle of many left out."""
    shown = [f"{value:.4g}" for value in S.tolist()]
    return ", ".join(shown if len(shown) <= _SHOWN else [*shown[: _SHOWN - 1], "…", shown[-1]])


def short(value: float) -> str:
    """Return a number as written by hand: 1e-6, 0.05."""
    if value >= 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"

"""These tests run the kernels in Triton's interpreter, which has to be switched on before a kernel is imported.

`tests/kernels/test_interpreted.py` starts them in a process of their own.
"""

import os
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def put_bfloat16_right() -> None:
    """Have the interpreter multiply numbers where it multiplies bit patterns, and round where it cuts float32 off."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        bits = np.ascontiguousarray(values).view(np.uint32)
        even = (bits >> 16) & 1
        return ((bits + np.uint32(0x7FFF) + even) >> 16).astype(np.uint16)

    def numbers(x: Any) -> Any:
        wide = x.dtype.scalar == tl.bfloat16
        return (x.data.astype(np.uint32) << 16).view(np.float32) if wide else x.data

    def dot(_: Any, a: Any, b: Any, added: Any, *__: Any) -> Any:
        product = np.matmul(numbers(a), numbers(b), dtype=added.data.dtype)
        return interpreter.TensorHandle(product + added.data, added.dtype.scalar)

    interpreter._convert_float = rounded
    interpreter.InterpreterBuilder.create_dot = dot


if INTERPRETED:
    put_bfloat16_right()

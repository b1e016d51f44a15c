"""Compile a Triton kernel for a named architecture with no device there, and read what it takes from the machine code.

Triton brings its own assembler and disassembler. It does not check the limit on shared memory: that is left to whoever
reads `Resources`.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: of a thread (registers, spilled bytes), of a program (bytes of shared memory).

    ``loop`` is the number of instructions of the longest loop that holds a matrix product (or any, where none does),
    ``products`` which matrix instructions the whole kernel has.
    """

    registers: int
    spilled: int
    shared: int
    loop: int
    threads: int
    products: Mapping[str, int]


def compiled(
    kernel: Any,
    architecture: int,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    aligned: Sequence[str],
    **options: Any,
) -> Resources:
    """Compile a kernel and read its resources.

    Parameters
    ----------
    kernel : triton.JITFunction
    architecture : int
        80 or 90.
    types : mapping
        Type of every argument that is not a constant, as Triton writes it (``*bf16``, ``i32``).
    constants : mapping
        Value of every other one.
    aligned : sequence of str
        Arguments that are multiples of 16, as all pointers are taken to be.
    **options
        num_warps, num_stages and the like.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in aligned
    }
    source = ASTSource(kernel, signature, dict(constants), attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", "-ndf", file.name)
    ptx = binary.asm["ptx"]
    return Resources(
        registers=int(_found(r"REG:(\d+)", usage)),
        spilled=int(_found(r"STACK:(\d+)", usage)),
        shared=binary.metadata.shared,
        loop=_longest_loop(code),
        threads=32 * options["num_warps"],
        products={name: len(re.findall(pattern, ptx)) for name, pattern in _PRODUCTS.items()},
    )


_PRODUCTS = {"wgmma": r"wgmma\.mma_async", "mma": r"\bmma\.sync"}


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in {text[:200]}")
    return match[1]


def _longest_loop(code: str) -> int:
    """Count the instructions between a label and the last branch back to it, in the loop that counts."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    loops = []
    for at, instruction in enumerate(instructions):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)
        if target and (start := labels.get(target[1], at)) < at:
            body = instructions[start : at + 1]
            loops.append((any("MMA" in other for other in body), len(body)))
    return max(loops, default=(False, 0))[1]

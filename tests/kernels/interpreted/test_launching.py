"""Every kernel is launched with the device of its tensors in force: told by a fake device context that records."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

import detjac_kernels.device
from detjac_kernels.device import captures, mixing
from detjac_kernels.device.decode import decode_rectangle
from detjac_kernels.device.launching import launch
from detjac_kernels.device.packed_linear import packed_linear
from tests.kernels.packed import random_packed

KERNELS = {
    "packed_gemm_kernel",
    "add_parts_kernel",
    "decode_rectangle_kernel",
    "mixing_kernel",
    "rms_norm_kernel",
    "gate_kernel",
}


class Recorder:
    """Stands for torch.cuda.device_of: remembers of which tensor it was made, and which kernels ran inside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside: list[Tensor] = []
        self.launched: dict[str, bool] = {}
        monkeypatch.setattr(torch.cuda, "device_of", self.enter)
        run = GridExecutor.__call__

        def recorded(executor: Any, *arguments: Any, **options: Any) -> None:
            name = executor.fn.__name__
            self.launched[name] = self.launched.get(name, True) and bool(self.inside)
            run(executor, *arguments, **options)

        monkeypatch.setattr(GridExecutor, "__call__", recorded)

    def enter(self, tensor: Tensor) -> Any:
        self.inside.append(tensor)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.inside.pop()


def test_every_launch_is_made_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    packed = random_packed(128, 1024, nested=True)
    packed_linear(torch.randn(3, 1024), packed, split=2)
    decode_rectangle(packed, range(4), range(8), torch.empty(4, 8))
    mixing.mix(torch.rand(1, 4, 4), torch.randn(1, 4, 4))
    captures.captured_rms_norm(torch.randn(2, 8), torch.ones(8), 1e-5)
    captures.captured_gate(torch.randn(2, 8), torch.randn(2, 8), "silu")
    assert recorder.launched == dict.fromkeys(KERNELS, True)
    assert recorder.inside == []


def test_nothing_else_launches_a_kernel() -> None:
    """A launch is written ``kernel[grid](…)``: a call of a subscript, which only `launch` may hold."""
    folder = Path(detjac_kernels.device.__file__).parent
    found = [
        path.name
        for path in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    assert found == ["launching.py"]


def test_operands_on_several_devices_are_refused() -> None:
    here, there = torch.ones(2), torch.ones(2, device="meta")
    with pytest.raises(ValueError, match="several devices: cpu, meta"):
        launch(SimpleNamespace(), (1,), here, there)

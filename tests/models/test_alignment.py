"""Tensors copied into huge pages: equal, apart from each other, saved like any, and gone with the last of them."""

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from detjac_lanczos.models import alignment, load_model
from detjac_lanczos.models.alignment import HUGE_PAGES, HugePages, rounded_up

pytestmark = pytest.mark.skipif(not HUGE_PAGES, reason="this system has no huge pages to ask for")

SHAPES = ((3, 5), (7,), (64, 300), (1, 1))


def test_copies_are_equal_apart_and_on_their_boundaries(tmp_path: Path) -> None:
    tensors = [torch.randn(shape) for shape in SHAPES]
    pages = HugePages(sum(rounded_up(tensor.nbytes) for tensor in tensors))
    copies = [pages.copy(tensor) for tensor in tensors]
    assert all(map(torch.equal, copies, tensors))
    assert all(moved.data_ptr() % 64 == 0 and moved.is_contiguous() for moved in copies)
    copies[0].fill_(1.0)
    assert all(map(torch.equal, copies[1:], tensors[1:]))
    assert all(moved.untyped_storage().nbytes() == tensor.nbytes for moved, tensor in zip(copies, tensors, strict=True))
    save_file({str(i): moved for i, moved in enumerate(copies)}, tmp_path / "copies.safetensors")


def test_columns_come_out_as_rows() -> None:
    turned = torch.randn(4, 6).t()
    moved = HugePages(turned.nbytes).copy(turned)
    assert torch.equal(moved, turned)
    assert moved.is_contiguous()


def test_memory_is_given_back_with_the_last_tensor() -> None:
    pages = HugePages(256)
    memory = weakref.ref(pages._memory)
    first, second = pages.copy(torch.ones(3)), pages.copy(torch.ones(3))
    del pages, first
    assert memory() is not None
    assert second.sum() == 3
    del second
    assert memory() is None


def test_a_loaded_model_lies_in_them_and_is_saved_and_copied_like_any(
    live: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 weights alone: half precision is repacked by its products."""
    moved = []

    class Watched(HugePages):
        def copy(self, tensor: torch.Tensor) -> torch.Tensor:
            moved.append(tensor)
            return super().copy(tensor)

    monkeypatch.setattr(alignment, "HugePages", Watched)
    for part in live:
        part.save_pretrained(tmp_path / "first")
    loaded = load_model(tmp_path / "first").model
    assert len(moved) == len(list(loaded.parameters()))
    loaded.save_pretrained(tmp_path / "second")
    again = copy.deepcopy(loaded)
    assert all(map(torch.equal, again.parameters(), loaded.parameters()))
    live[1].save_pretrained(tmp_path / "second")
    assert all(map(torch.equal, load_model(tmp_path / "second").model.parameters(), loaded.parameters()))
    moved.clear()
    load_model(tmp_path / "second", dtype="bfloat16")
    assert not moved


def test_where_no_stretch_is_long_enough_weights_are_put_on_a_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    model = torch.nn.Linear(3, 5)
    model.empty = torch.nn.Parameter(torch.zeros(0, 4))
    model.weight.data = torch.randn(16)[1:].view(5, 3)
    before = model.weight.detach().clone()
    monkeypatch.setattr(alignment, "HugePages", none_left)
    alignment.align(model)
    assert model.weight.data_ptr() % 64 == 0
    assert torch.equal(model.weight, before)
    monkeypatch.undo()
    alignment.align(model)
    assert torch.equal(model.weight, before)

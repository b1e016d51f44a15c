"""float32 means float32: the caller's autocast reaches neither the capture nor the sweeps; rounding is refused."""

import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen import precision
from detjac_lanczos.frozen.precision import require_exact_products
from detjac_lanczos.operators import detach, mlp
from tests import tiny_models
from tests.tiny_models.dense import DENSE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("make", [tiny_models.llama, tiny_models.gemma, DENSE["Gemma 3 softcapped"]])
def test_an_ambient_autocast_changes_nothing(make) -> None:
    model = tiny_models.loaded(make(torch.float32))
    ids = tiny_models.prompt_ids(tiny_models.LENGTH)
    alone = detach(model, input_ids=ids)
    targets = ("output", "logits", mlp(0))
    expected = [(J.dense(), J.y) for J in (alone.jacobian(0, target=target) for target in targets)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = detach(model, input_ids=ids)
        assert torch.is_autocast_enabled("cpu")
        for target, (dense, y) in zip(targets, expected, strict=True):
            other = inside.jacobian(0, target=target)
            assert other.reconstruction.relative_error <= 1e-6
            torch.testing.assert_close(other.dense(), dense)
            torch.testing.assert_close(other.y, y)


def test_products_are_as_torch_is_set_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was measured under another setting."""
    monkeypatch.setattr(precision, "_products_are_exact", lambda device, setting: setting != "bf16")
    cpu, matmul = torch.device("cpu"), torch.backends.mkldnn.matmul
    require_exact_products(torch.float32, cpu)
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        require_exact_products(torch.float64, cpu)
        with pytest.raises(InputError, match="round the factors of float32 products"):
            require_exact_products(torch.float32, cpu)
    finally:
        matmul.fp32_precision = before

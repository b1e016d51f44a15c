"""float32 means float32: the caller's autocast reaches neither the capture nor the sweeps; rounding is refused."""

import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen import precision
from detjac_lanczos.frozen.precision import require_exact_products
from detjac_lanczos.operators import detach, layer, mlp
from detjac_lanczos.reading.head import head_of
from detjac_lanczos.runs import analyze, verify
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = DENSE | UNDECLARED


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


@pytest.mark.parametrize("name", ["Llama", "StableLM"])
@pytest.mark.parametrize(("dtype", "other"), [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)])
def test_an_ambient_autocast_to_the_other_half_precision_changes_nothing(
    name: str, dtype: torch.dtype, other: torch.dtype
) -> None:
    model, ids = tiny_models.loaded(EVERY[name](dtype)), tiny_models.prompt_ids(6)

    def results() -> list[Tensor]:
        network = detach(model, input_ids=ids)
        batch = network.jacobians()
        Y = torch.eye(batch.shapes[0][0], dtype=dtype)
        joint, ordinary = network.jacobian("joint"), network.jacobian(0, frozen=False)
        return [
            joint.dense(),
            joint.reconstruction.estimate,
            network.reconstruction.estimate,
            ordinary.dense(),
            ordinary.rmatmat(Y),
            *batch.rmatmat_shared(Y),
            batch.matmat_sum([(0, Y), (1, Y)]),
        ]

    expected = results()
    with torch.autocast("cpu", other):
        found = results()
    for value, alone in zip(found, expected, strict=True):
        assert torch.equal(value, alone)


@pytest.mark.parametrize("name", ["Llama", "StableLM"])
def test_a_run_inside_an_autocast_verifies(name: str) -> None:
    model, ids = tiny_models.loaded(EVERY[name](torch.float32)), tiny_models.prompt_ids(6)
    with torch.autocast("cpu", torch.bfloat16):
        head_of(detach(model, input_ids=ids))
        assert verify(analyze(model, input_ids=ids, k=2), model).ok


def test_what_is_kept_in_inference_mode_serves_derivatives_outside_of_it() -> None:
    with torch.inference_mode():
        network = detach(tiny_models.loaded(tiny_models.llama(torch.float64)), input_ids=tiny_models.prompt_ids(6))
        altered = network.replace(drop=mlp(0))
        for kept in (network, altered):
            kept.jacobian("joint", source=layer(1), target=mlp(1)).dense()
        _ = network.jacobian("joint", target=mlp(1)).y, network.reconstruction, altered.jacobian(0, source=layer(1)).x
    for value in (
        network.jacobian("joint", target=mlp(1)).y,
        network.reconstruction.estimate,
        network.reconstruction.y,
        altered.jacobian(0, source=layer(1)).x,
    ):
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        (factor * value).sum().backward()
        assert factor.grad == value.sum()

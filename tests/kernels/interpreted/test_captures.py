import pytest
import torch

from detjac_kernels import captures as twin
from detjac_kernels.device import captures as device
from tests.kernels.packed import relative

EXACT = 1e-6


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("d", [96, 576])
def test_rms_norm(d: int, plus_one: bool) -> None:
    x, weight = 3 * torch.randn(7, d), torch.randn(d)
    x[2] = 0
    got, expected = (side.captured_rms_norm(x, weight, 1e-5, plus_one=plus_one) for side in (device, twin))
    assert relative(got[0], expected[0]) <= EXACT
    assert relative(got[1], expected[1]) <= EXACT


def test_a_strided_input_and_no_rows() -> None:
    x = torch.randn(5, 200)[:, 40:140]
    assert (
        relative(
            device.captured_rms_norm(x, torch.ones(100), 1e-5)[0], twin.captured_rms_norm(x, torch.ones(100), 1e-5)[0]
        )
        <= EXACT
    )
    normed, rstd = device.captured_rms_norm(x[:0], torch.ones(100), 1e-5)
    assert normed.shape == (0, 100) and rstd.shape == (0,)


def test_a_norm_too_wide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        device.captured_rms_norm(torch.zeros(1, device.WIDEST + 1), torch.zeros(device.WIDEST + 1), 1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("folded", [False, True])
def test_gate(activation: twin.Activation, folded: bool) -> None:
    gate, up = 4 * torch.randn(6, 1500), torch.randn(6, 1500)
    gate[0, :4] = torch.tensor([0.0, -200.0, 200.0, -30.0])
    rstd = (torch.rand(12) + 0.1)[::2] if folded else None
    for got, expected in zip(
        device.captured_gate(gate, up, activation, rstd=rstd),
        twin.captured_gate(gate, up, activation, rstd=rstd),
        strict=True,
    ):
        assert relative(got, expected) <= EXACT
        assert torch.isfinite(got).all()

"""Forward mode through the structural copy gives what reverse mode gives through the caller's model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from detjac_lanczos.errors import InputError
from detjac_lanczos.frozen.precision import LiftToFloat64
from detjac_lanczos.operators import detach, layer, mlp
from detjac_lanczos.reading import ordinary_estimate, ordinary_products
from tests import tiny_models

LENGTHS = (tiny_models.LENGTH, 5)


@pytest.mark.parametrize("make", ["llama", "gemma"])
def test_equals_reverse_mode(make: str) -> None:
    model = getattr(tiny_models, make)()
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(*LENGTHS))
    model.config._attn_implementation = "eager"
    x = network.inputs(0, 1)

    def output(x: Tensor) -> Tensor:
        result: Any = model.model(inputs_embeds=x[None], use_cache=False).last_hidden_state
        return result[0, 3]

    with LiftToFloat64():
        J = torch.func.jacrev(output)(x)
    expected = torch.einsum("omd,md->mo", J, x)[:4]
    products = ordinary_products(network, prompt=1, position=3)
    torch.testing.assert_close(products, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        ordinary_estimate(network, prompt=1, position=3), expected.sum(dim=0), rtol=1e-10, atol=1e-10
    )


def test_ordinary_jacobians_of_the_last_norm_alone_annihilate_the_input() -> None:
    """An RMS norm without epsilon is homogeneous of degree 0: its ordinary Jacobian times its input is zero."""
    model = tiny_models.llama(rms_norm_eps=0.0)
    with torch.no_grad():
        for branch in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[2].get_submodule(branch).weight.zero_()
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(tiny_models.LENGTH))
    y = network.streams.output[-1]
    assert float(ordinary_estimate(network, source=layer(2)).norm() / y.norm()) < 1e-13
    residual = ordinary_estimate(network, source=layer(2), target="residual")
    torch.testing.assert_close(residual, network.inputs(2, 0)[-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ordinary_estimate(network, source=layer(2), target=layer(2)), residual)


def test_the_caller_s_model_stays_as_it_was() -> None:
    model = tiny_models.llama()
    network = detach(tiny_models.loaded(model), input_ids=tiny_models.prompt_ids(*LENGTHS))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    ordinary_products(network)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation != "detjac_observed"


def test_what_does_not_exist_is_refused() -> None:
    network = detach(tiny_models.loaded(tiny_models.llama()), input_ids=tiny_models.prompt_ids(*LENGTHS))
    with pytest.raises(InputError, match="prompt 2"):
        ordinary_estimate(network, prompt=2)
    with pytest.raises(InputError, match="position 7"):
        ordinary_products(network, prompt=1, position=7)
    with pytest.raises(InputError, match="layer 3"):
        ordinary_estimate(network, target=mlp(3))

"""Copies of what never changes are itself; what holds a model is not pickled, and says what to do instead."""

import copy
import pickle
from typing import Any

import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import PinnedNetwork, detach
from detjac_lanczos.operators.linear import MatrixFree
from tests import tiny_models
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")


MODELS = {"Llama": tiny_models.llama, "StableLM": UNDECLARED["StableLM"]}
ADVICE = {
    "Llama": r"give another process the file of network.save\(path\)",
    "StableLM": "detach in the other process$",
}


@pytest.fixture(scope="module", params=MODELS)
def network(request: pytest.FixtureRequest) -> Any:
    return detach(tiny_models.loaded(MODELS[request.param](torch.float64)), input_ids=tiny_models.prompt_ids(4))


@pytest.mark.parametrize("what", ["network", "operator", "transposed", "batch", "ordinary"])
def test_copies_are_itself_and_pickles_are_refused(what: str, network: Any) -> None:
    J = network.jacobian(1, frozen=what != "ordinary")
    held = {"network": network, "transposed": J.T, "batch": network.jacobians()}.get(what, J)
    advice = ADVICE["StableLM" if isinstance(network, PinnedNetwork) else "Llama"]
    assert copy.deepcopy({"mine": held})["mine"] is held
    assert copy.copy(held) is held
    for whole in (held, held.aslinearoperator()) if isinstance(held, MatrixFree) else (held,):
        with pytest.raises(InputError, match=f"is not pickled; {advice}"):
            pickle.dumps(whole)

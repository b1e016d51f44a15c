"""Copies of what never changes are itself; what holds a model is not pickled, and says what to do instead."""

import copy
import pickle
from typing import Any

import pytest

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import detach
from detjac_lanczos.operators.linear import MatrixFree
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> Any:
    return detach(tiny_models.loaded(tiny_models.llama()), input_ids=tiny_models.prompt_ids(4))


@pytest.mark.parametrize("what", ["network", "operator", "transposed", "batch", "ordinary"])
def test_copies_are_itself_and_pickles_are_refused(what: str, network: Any) -> None:
    J = network.jacobian(1, frozen=what != "ordinary")
    held = {"network": network, "transposed": J.T, "batch": network.jacobians()}.get(what, J)
    assert copy.deepcopy({"mine": held})["mine"] is held
    assert copy.copy(held) is held
    for whole in (held, held.aslinearoperator()) if isinstance(held, MatrixFree) else (held,):
        with pytest.raises(InputError, match=r"is not pickled; give another process the file of network.save\(path\)"):
            pickle.dumps(whole)

"""A network goes with its last reference; the cyclic collector, which does not count what tensors hold, comes late."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from detjac_lanczos.models import LoadedModel
from detjac_lanczos.operators import DetachedNetwork, detach
from detjac_lanczos.reading import contributions, stable_ranks
from detjac_lanczos.solvers import check_operator, svd, svd_batch
from tests import tiny_models
from tests.tiny_models.undeclared import UNDECLARED

pytestmark = pytest.mark.usefixtures("one_thread")

USES: dict[str, Callable[[DetachedNetwork], Any]] = {
    "nothing": lambda network: None,
    "dense": lambda network: network.jacobian(2).dense(),
    "lanczos": lambda network: svd(network.jacobian(2), 2, method="lanczos"),
    "randomized": lambda network: svd(network.jacobian(2), 2, method="randomized"),
    "dense svd": lambda network: svd(network.jacobian(2), 2, method="dense"),
    "survey": lambda network: svd_batch(network.jacobians(), 2, method="shared_basis"),
    "reconstruction": lambda network: network.reconstruction,
    "ordinary": lambda network: network.jacobian(2, frozen=False).reconstruction,
    "check": lambda network: check_operator(network.jacobian(2)),
    "apply": lambda network: network.apply(network.inputs(-1, 0)[None]),
}


def readings(network: DetachedNetwork) -> object:
    batch = network.jacobians()
    found = svd_batch(batch, 2)
    return contributions(batch, found), stable_ranks(batch, found)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module", params=["declared", "undeclared"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    make = tiny_models.llama if request.param == "declared" else UNDECLARED["StableLM"]
    return tiny_models.loaded(make(torch.float32))


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("use", [*USES.values(), readings], ids=[*USES, "readings"])
def test_a_network_is_freed_with_its_last_reference(model: LoadedModel, use: Callable[[DetachedNetwork], Any]) -> None:
    network = detach(model, input_ids=tiny_models.prompt_ids(5))
    use(network)
    alive = weakref.ref(network)
    del network
    assert alive() is None

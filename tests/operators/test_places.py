"""Places that do not exist or are no places: one clear error each."""

from typing import Any

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import DetachedNetwork, attention, detach, expert, head, layer, mlp, probe
from tests import tiny_models
from tests.tiny_models import undeclared

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> DetachedNetwork:
    return detach(tiny_models.loaded(tiny_models.llama(torch.float32)), input_ids=tiny_models.prompt_ids(4))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0]], "probe takes a torch tensor .*, not list"),
        (np.zeros((3, 4)), "probe takes a torch tensor .*, not ndarray"),
        (torch.zeros(24), r"probe needs a matrix .* got shape \(24,\)"),
        (torch.full((2, 3), float("nan")), "probe was given rows with a NaN"),
        (torch.ones(2, 24, dtype=torch.complex64), r"probe takes real rows, not torch\.complex64"),
    ],
)
def test_probe_rows_are_a_real_finite_matrix(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe(rows)


@pytest.mark.parametrize("options", [{"position": 1.5}, {"target": layer(0.5)}, {"source": layer(0.5)}])
def test_indices_are_whole(network: DetachedNetwork, options: Any) -> None:
    with pytest.raises(InputError, match=r"does not exist|is no index"):
        network.jacobian(0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": layer(None)}, "target layer None does not exist; this model has blocks"),  # type: ignore[arg-type]
        ({"target": attention(None)}, "target layer None does not exist"),  # type: ignore[arg-type]
        ({"target": mlp(None)}, "target layer None does not exist"),  # type: ignore[arg-type]
        ({"source": layer(None)}, "source layer None does not exist"),  # type: ignore[arg-type]
        ({"source": mlp(0)}, "source must be 'embeddings' or layer"),
        ({"target": ["output"]}, "target must be 'output'"),
        ({"source": ["embeddings"]}, "source must be 'embeddings'"),
    ],
)
@pytest.mark.parametrize("make", [tiny_models.llama, undeclared.helium])
def test_a_place_without_a_block_is_no_place(make: Any, options: Any, message: str) -> None:
    network = detach(tiny_models.loaded(make(torch.float32)), input_ids=tiny_models.prompt_ids(4))
    with pytest.raises(InputError, match=message):
        network.jacobian(0, **options)


def test_a_target_has_the_width_of_its_jacobians(network: DetachedNetwork) -> None:
    for target in ("output", "residual", "logits", layer(-1), mlp(0), probe(torch.ones(2, 24))):
        assert network.width_at(target) == network.jacobian(0, target=target).shape[0]
    for none in (layer(9), "layer"):
        with pytest.raises(InputError, match="target"):
            network.width_at(none)


@pytest.mark.parametrize(
    "drop", [head(None, 1), head(0, None), expert(None, 0), attention(None), mlp(None), layer(0), mlp(True)]
)  # type: ignore[arg-type]
def test_what_names_no_block_cannot_be_dropped(network: DetachedNetwork, drop: Any) -> None:
    with pytest.raises(InputError, match=r"cannot drop .*; drop takes head\(l, h\)"):
        network.replace(drop=[drop])


@pytest.mark.parametrize("number", [np.int64, torch.tensor])
def test_what_is_dropped_is_counted_in_any_whole_numbers(network: DetachedNetwork, number: Any) -> None:
    one = network.replace(drop=[head(0, 1), attention(1), mlp(2)])
    other = network.replace(drop=[head(number(0), number(1)), attention(number(1)), mlp(number(2))])
    assert one.dropped == other.dropped == {"head.0.1", "attention.1", "mlp.2"}
    assert torch.equal(one.jacobian("joint").dense(), other.jacobian("joint").dense())


def test_what_is_dropped_may_be_counted_from_the_end(network: DetachedNetwork) -> None:
    last = network.blocks - 1
    one = network.replace(drop=[head(0, 3), attention(last), mlp(last - 1)])
    other = network.replace(drop=[head(-last - 1, -1), attention(-1), mlp(-2)])
    assert one.dropped == other.dropped == {"head.0.3", f"attention.{last}", f"mlp.{last - 1}"}
    assert torch.equal(one.jacobian("joint").dense(), other.jacobian("joint").dense())

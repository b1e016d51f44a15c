"""Places that do not exist or are no places: one clear error each."""

from typing import Any

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError
from detjac_lanczos.operators import detach, layer, probe
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("rows", [[[1.0]], np.zeros((3, 4)), torch.zeros(3), torch.full((2, 3), float("nan"))])
def test_probe_rows_are_a_finite_matrix(rows: Any) -> None:
    with pytest.raises(InputError, match="probe"):
        probe(rows)


@pytest.mark.parametrize("options", [{"position": 1.5}, {"target": layer(0.5)}, {"source": layer(0.5)}])
def test_indices_are_whole(options: Any) -> None:
    network = detach(tiny_models.loaded(tiny_models.llama(torch.float32)), input_ids=tiny_models.prompt_ids(4))
    with pytest.raises(InputError, match=r"does not exist|is no index"):
        network.jacobian(0, **options)

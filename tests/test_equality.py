"""Whatever holds tensors or arrays is itself and nothing else: it can be compared, looked for and put into a set."""

import dataclasses
import importlib
import pkgutil
import re

import pytest
import torch

import detjac_kernels
import detjac_lanczos
from detjac_lanczos.solvers.result import Guards


def holders_of_arrays():
    for room in (detjac_lanczos, detjac_kernels):
        for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            if found.name.endswith("__main__") or ".device." in found.name:
                continue
            module = importlib.import_module(found.name)
            for kind in vars(module).values():
                own = isinstance(kind, type) and kind.__module__ == found.name and dataclasses.is_dataclass(kind)
                if own and any(re.search("Tensor|ndarray", str(field.type)) for field in dataclasses.fields(kind)):
                    yield kind


@pytest.mark.parametrize("kind", list(holders_of_arrays()), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_equality_is_identity(kind):
    assert kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__


def test_results_can_be_compared_and_found():
    one, same = (Guards(torch.eye(2), torch.ones(2), torch.eye(2)) for _ in range(2))
    assert one == one and one != same and one in [same, one] and len({one, same, one}) == 2

"""What memory must hold for dense, and that what cannot be asked stops nobody."""

import torch

from detjac_lanczos.solvers import svd
from tests.unreadable import no_descriptor_left


def test_memory_that_cannot_be_asked_for_want_of_descriptors_is_not_missed() -> None:
    A = torch.eye(30)
    expected = svd(A, 20, method="dense")  # what is imported for it is imported
    with no_descriptor_left():
        assert torch.equal(svd(A, 20, method="dense").S, expected.S)
        assert svd(A, 20).method == "dense"

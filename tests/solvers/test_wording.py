"""Numbers of a claim never say more than the number itself."""

import math

import pytest

from detjac_lanczos.solvers.wording import ratio_up, rounded_up


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.0e0"), (1.01e-7, "1.1e-7"), (9.95e-3, "1.0e-2"), (1.7e308, "1.7e308"), (math.inf, "inf")],
)
def test_a_number_is_rounded_up(value: float, text: str) -> None:
    assert rounded_up(value) == text
    assert float(text) >= value


def test_a_ratio_is_rounded_up() -> None:
    assert [ratio_up(value) for value in (1.001, 0.5, 1234.0, 0.001, math.inf)] == [
        "1.01",
        "0.50",
        "1.3e3",
        "1.0e-3",
        "inf",
    ]

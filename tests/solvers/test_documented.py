"""The documented example runs, and says what its comments say."""

import re
from pathlib import Path

import numpy as np
import pytest

from detjac_lanczos.solvers import Status

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"


def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    result, weights = names["result"], names["weights"]
    n = len(weights)
    dense = weights[:, None] * (np.eye(n, k=1) - np.eye(n))
    exact = np.linalg.svd(dense[:400, :401], compute_uv=False)[:6]  # beyond row 400 weights are under 6e-6
    assert result.status is Status.CONVERGED
    np.testing.assert_allclose(result.S.numpy(), exact, rtol=1e-7)
    assert result.certificate.line.startswith("TRIPLETS 6/6")
    assert "COMPLETE: these are σ_1..σ_6" in result.certificate.line
    assert "TRIPLETS 6/6" in capsys.readouterr().out

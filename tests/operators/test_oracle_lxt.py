"""J against reverse mode through the modules of transformers as LXT, a published package, patches them."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detjac_lanczos.operators import detach
from tests.oracles import errors
from tests.tiny_models import DENSE, LENGTH, loaded, prompt_ids

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_spec("lxt") is None, reason="lxt is not installed"),
]

ROOT = Path(__file__).resolve().parent.parent.parent
BAR = {torch.float64: 1e-11, torch.float32: 2e-6}
GATED = [name for name in DENSE if name.startswith(("Llama", "Qwen2", "Qwen3", "Gemma 3"))]
UNGATED = [name for name in DENSE if name.startswith("GPT-2")]
CASES = [(name, freeze) for name in GATED for freeze in ("gate", "half")] + [(name, "gate") for name in UNGATED]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Their Jacobians, (d, n·d), made in a process of their own: the patches last as long as it does."""
    path = tmp_path_factory.mktemp("lxt") / "jacobians.safetensors"
    command = [sys.executable, "-m", "tests.lxt_process", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(path)


@pytest.mark.parametrize("dtype", BAR, ids=str)
@pytest.mark.parametrize(("name", "freeze"), CASES)
def test_the_transposed_sweep_is_their_backward_pass(
    theirs: dict[str, Tensor], name: str, freeze: Any, dtype: torch.dtype
) -> None:
    network = detach(loaded(DENSE[name](dtype)), input_ids=prompt_ids(LENGTH), freeze=freeze)
    J = network.jacobian("joint")
    found = J.rmatmat(torch.eye(J.shape[0], dtype=dtype)).T
    assert max(errors(found, theirs[f"{name} {freeze} {dtype}"])) <= BAR[dtype]

"""The whole way of a job, from a model to a verified run and its page, for every tiny model."""

from pathlib import Path

import pytest
import torch

from detjac_lanczos.operators import layer
from detjac_lanczos.runs import analyze, disk, load_run, verify
from tests import tiny_models
from tests.tiny_models.dense import DENSE
from tests.tiny_models.moe import MOE
from tests.tiny_models.runnable import runnable
from tests.tiny_models.undeclared import UNDECLARED
from tests.tiny_models.wrappers import WRAPPERS

EVERY = DENSE | MOE | UNDECLARED | {name: make for name, (*_, make) in WRAPPERS.items()}
CASES = [(name, "embeddings", "output") for name in EVERY] + [("OPT post-norm", layer(1), "residual")]


@pytest.mark.parametrize(("name", "source", "target"), CASES)
def test_a_run_is_saved_verified_and_shown(
    name: str, source: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "save_figures", lambda *_: [])  # the time of all the rest; they have tests of their own
    model = tiny_models.loaded(runnable(EVERY[name](torch.float32)))
    run = analyze(model, input_ids=tiny_models.prompt_ids(3), k=2, tokens=[0], source=source, target=target)
    again = load_run(run.save(tmp_path / "out"))
    assert verify(again, model).ok
    assert again.page() == run.page()
    assert str(again) == str(run)

"""What README shows is what the package does."""

import re
from pathlib import Path
from typing import Any

from detjac_lanczos import reading
from detjac_lanczos.frozen.families.glm import GLM4

README = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_family_shown_is_the_one_served() -> None:
    (declaration,) = (block for block in BLOCKS if "GLM4 = Family(" in block)
    shown: dict[str, Any] = {}
    exec(declaration, shown)
    assert shown["GLM4"] == GLM4


def test_every_block_is_python() -> None:
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        compile(block, "README.md", "exec")


def test_every_plot_is_told_of() -> None:
    plots = [name for name in reading.__all__ if name.startswith("plot_")]
    assert len(plots) == 3 and all(name in README for name in plots)

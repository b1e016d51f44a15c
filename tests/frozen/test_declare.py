"""A declaration that does not fit its model is one clear line, however it is wrong."""

from dataclasses import replace

import pytest

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen import families
from detjac_lanczos.frozen.families.llama import ATTENTION, LLAMA, MLP
from detjac_lanczos.frozen.words import Project, Scale
from detjac_lanczos.operators import detach
from tests import tiny_models


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block": ((ATTENTION,), (replace(MLP, output="mlp.nope"),))}, r"blocks\.0 .*nope"),
        ({"block": ((ATTENTION,), (replace(MLP, scale="beta"),))}, r"blocks\.0 .*beta"),
        ({"block": ((replace(ATTENTION, words=(Project("self_attn.w"),)),), (MLP,))}, r"blocks\.0 .*'?w'?"),
        ({"entry": (Scale("nothing"),)}, "entry .*nothing"),
    ],
)
def test_a_module_that_is_not_there_is_named(
    changes: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "FAMILIES", (replace(LLAMA, **changes),))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        detach((tiny_models.llama(), None), input_ids=[1, 2, 3])
    assert "is not built as Llama 2 / 3 is" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_role_names_one_branch() -> None:
    with pytest.raises(ValueError, match="gives one role to two branches of a block: attention, attention"):
        replace(LLAMA, block=((ATTENTION,), (replace(MLP, role="attention"),)))

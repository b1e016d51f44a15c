"""A solve that is cut off anywhere goes on from its journal and ends bit for bit as if nothing had happened."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from detjac_lanczos.errors import InputError, OperatorError, RunFileError
from detjac_lanczos.solvers import Status, SVDResult, auto, journal, prices, svd, svd_batch
from tests.solvers.spectra import Recorder, SharingBatch, matrix, spectrum
from tests.unreadable import no_descriptor_left

MATRICES = [
    matrix(spectrum(name, 40), (90, 40), seed).float() for seed, name in enumerate(["root", "spike", "multiple"])
]
SOLVES = {
    "lanczos": {"method": "lanczos", "block": 2},
    "complete": {"method": "lanczos", "certify": "complete", "delta": 1e-3},
    "randomized": {"method": "randomized", "tol": 0.3},
    "dense": {"method": "dense"},
    "auto": {},
    "survey": {"method": "shared_basis"},
    "scaled": {"method": "lanczos", "scale": 1e-30},
}


class Cut(Exception):
    """The end of a process, as far as a solve can tell."""


class Cutting(SharingBatch):
    """A batch that shares and adds, and that is cut off at its n-th call."""

    def __init__(self, matrices: list[torch.Tensor], at: int = -1) -> None:
        super().__init__(matrices, [1.0] * len(matrices))
        self.at = at

    def count(self) -> None:
        if len(self.calls) == self.at:
            raise Cut

    def matmat(self, blocks):
        self.count()
        return super().matmat(blocks)

    def rmatmat(self, blocks):
        self.count()
        return super().rmatmat(blocks)

    def rmatmat_shared(self, Y):
        self.count()
        return super().rmatmat_shared(Y)

    def matmat_sum(self, blocks):
        self.count()
        self.calls.append(("sum", [X.shape[1] for _, X in blocks]))
        return torch.stack([self.matrices[index] @ X for index, X in blocks]).sum(dim=0)


def solve(batch: Cutting, name: str, folder: Path | None) -> list[SVDResult]:
    options = dict(SOLVES[name])
    scale = options.pop("scale", 1.0)
    batch.matrices = [A * scale for A in MATRICES]
    return svd_batch(batch, 4, checkpoint=folder, **options)


def assert_same(one: list[SVDResult], other: list[SVDResult]) -> None:
    for a, b in zip(one, other, strict=True):
        for name in ("U", "S", "V", "residuals"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)
        assert (a.status, a.certificate, a.advice, a.choices) == (b.status, b.certificate, b.advice, b.choices)
        assert (a.work.products, a.work.passes, a.work.row_sweeps) == (
            b.work.products,
            b.work.passes,
            b.work.row_sweeps,
        )


@pytest.mark.parametrize("name", SOLVES)
def test_cut_off_at_any_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass is made once, whatever is lost is one pass, and the end is the same in every bit."""
    monkeypatch.setattr(auto, "TINY", 0)
    monkeypatch.setattr(prices, "decomposition_seconds", lambda shape, dtype, device: 0.0)
    whole = Cutting(MATRICES)
    expected = solve(whole, name, tmp_path / "whole")
    if name != "auto":
        assert_same(expected, solve(Cutting(MATRICES), name, None))
    for at in range(len(whole.calls)):
        folder = tmp_path / str(at)
        if name == "auto":
            # A journal that ends here: what was decided by timing goes with the passes.
            folder.mkdir()
            for path in sorted((tmp_path / "whole").iterdir()):
                if not path.name.startswith("pass") or int(path.stem.split("-")[1]) < at:
                    (folder / path.name).write_bytes(path.read_bytes())
        else:
            with pytest.raises(Cut):
                solve(Cutting(MATRICES, at), name, folder)
        again = Cutting(MATRICES)
        assert_same(expected, solve(again, name, folder))
        recognising = len(again.calls) - (len(whole.calls) - at)
        one_by_one = len(MATRICES) if name == "randomized" else 1
        assert (at > 0) <= recognising <= one_by_one * (at > 0)


def test_a_finished_solve_asks_each_operator_for_one_column(tmp_path: Path) -> None:
    first = solve(Cutting(MATRICES), "lanczos", tmp_path)
    again = Cutting(MATRICES)
    assert_same(first, solve(again, "lanczos", tmp_path))
    assert again.calls == [("transposed", [1, 1, 1])]


@pytest.mark.parametrize(
    ("operators", "options", "said"),
    [
        ([MATRICES[0]] * 2, {"max_products": 12}, "holds no survey"),
        ([MATRICES[0], MATRICES[1][:80]], {}, "one output space"),
    ],
)
def test_a_survey_that_is_refused_leaves_its_folder_free(
    operators: list[torch.Tensor], options: dict[str, int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        svd_batch(operators, 5, method="shared_basis", checkpoint=tmp_path, **options)
    assert svd_batch([MATRICES[0]] * 2, 5, method="shared_basis", checkpoint=tmp_path, max_products=60)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "half-written", "one bit"])
def test_a_damaged_pass_and_all_after_it_are_made_again(damage: str, tmp_path: Path) -> None:
    whole = Cutting(MATRICES)
    expected = solve(whole, "lanczos", tmp_path)
    path = tmp_path / "pass-000005.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 0x40]) + content[-8:]
        halved = content[: len(content) // 2]
        damaged = {"truncated": content[:-7], "emptied": b"", "half-written": halved, "one bit": flipped}
        path.write_bytes(damaged[damage])
    again = Cutting(MATRICES)
    assert_same(expected, solve(again, "lanczos", tmp_path))
    assert len(again.calls) == len(whole.calls) - 5 + 1
    assert_same(expected, solve(Cutting(MATRICES), "lanczos", tmp_path))


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")], ids=repr)
def test_passes_that_cannot_be_read_now_are_kept(error: Exception, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    expected = solve(Cutting(MATRICES), "lanczos", tmp_path)
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as now:
        now.setattr(journal, "safe_open", fail)
        with pytest.raises(RunFileError, match=r"^cannot read .*pass-000000\.safetensors: .*; "):
            solve(Cutting(MATRICES), "lanczos", tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    again = Cutting(MATRICES)
    assert_same(expected, solve(again, "lanczos", tmp_path))
    assert len(again.calls) <= 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_that_cannot_be_opened_now_is_not_blamed(begun: bool, tmp_path: Path) -> None:
    if begun:
        solve(Cutting(MATRICES), "lanczos", tmp_path)
    before = sorted(tmp_path.iterdir())
    with no_descriptor_left(), pytest.raises(InputError, match=r"^cannot open [^:]*: too many files are open"):
        solve(Cutting(MATRICES), "lanczos", tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_pass_that_cannot_be_written_now_blames_no_folder(tmp_path: Path) -> None:
    written = journal.Journal(tmp_path, {})
    with no_descriptor_left(), pytest.raises(InputError, match=r"^cannot write .*: too many files are open"):
        written.decide({"seconds_per_row": 1.0})


def test_a_decision_that_cannot_be_read_now_is_not_made_again(tmp_path: Path) -> None:
    written = journal.Journal(tmp_path, {})
    written.decide({"seconds_per_row": 1.0})
    with no_descriptor_left(), pytest.raises(RunFileError, match=r"^cannot read .*: too many files are open"):
        _ = written.decision
    assert written.decision == {"seconds_per_row": 1.0}


DAMAGED = ["[1]", "3", "{", "null", "{}", '{"decided": 3, "checksum": "0"}', '{"decided": {"svd_seconds": 1}}']


@pytest.mark.parametrize(
    "content", [*DAMAGED, "[" * 100_000, "nan", "text", "null in it", "more digits", "no float", b"\xff"]
)
def test_a_damaged_decision_is_timed_again(content: str | bytes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(auto, "TINY", 0)
    expected = solve(Cutting(MATRICES), "auto", tmp_path)
    place = tmp_path / "decision.json"
    known = json.loads(place.read_text())["decided"]
    values = {"nan": float("nan"), "text": "x", "null in it": None, "more digits": 1e99, "no float": 10**400}
    if content in values:
        kept = json.loads(place.read_text()) | {"decided": known | {"seconds_per_row": values[content]}}
        content = json.dumps(kept)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    again = solve(Cutting(MATRICES), "auto", tmp_path)
    torch.testing.assert_close(again[0].S, expected[0].S)
    assert "nan" not in again[0].why
    fresh = json.loads(place.read_text())["decided"]
    assert fresh.keys() == known.keys()
    assert all(0.0 <= fresh[name] < 1e3 for name in known)


def test_a_pass_of_other_blocks_is_not_taken(tmp_path: Path) -> None:
    """As on another processor, which rounds differently: the stored product belongs to another block."""
    solve(Cutting(MATRICES), "lanczos", tmp_path)
    passes = sorted(tmp_path.glob("pass-*"))
    passes[3].write_bytes(passes[1].read_bytes())
    again = Cutting(MATRICES)
    results = solve(again, "lanczos", tmp_path)
    assert_same(results, solve(Cutting(MATRICES), "lanczos", None))
    assert len(again.calls) == len(passes) - 3 + 1


@pytest.mark.parametrize("name", ["dense", "survey"])
def test_a_pass_of_another_journal_is_not_taken(name: str, tmp_path: Path) -> None:
    """The operators of both are sent the same blocks; their products together would contradict each other."""
    expected = solve(Cutting(MATRICES), name, tmp_path / "one")
    svd_batch(SharingBatch([1.01 * A for A in MATRICES], [1.0] * 3), 4, checkpoint=tmp_path / "other", **SOLVES[name])
    shutil.copy(*(tmp_path / folder / "pass-000001.safetensors" for folder in ("other", "one")))
    assert_same(expected, solve(Cutting(MATRICES), name, tmp_path / "one"))


def test_a_journal_of_another_operator_or_solve_is_refused(tmp_path: Path) -> None:
    A = MATRICES[0]
    svd(A, 4, method="lanczos", checkpoint=tmp_path)
    with pytest.raises(InputError, match="another operator"):
        svd(1.001 * A, 4, method="lanczos", checkpoint=tmp_path)
    for options in ({"k": 3}, {"tol": 1e-4}, {"seed": 1}, {"block": 2}, {"method": "dense"}, {"certify": "complete"}):
        with pytest.raises(InputError, match="repeat its options"):
            svd(A, **({"k": 4, "method": "lanczos", "checkpoint": tmp_path} | options))
    for other in (A.double(), A.T, [A, A]):
        with pytest.raises(InputError, match="repeat its options"):
            svd_batch(other if isinstance(other, list) else [other], 4, method="lanczos", checkpoint=tmp_path)
    with pytest.raises(InputError, match="repeat its options"):
        svd(A, 4, method="lanczos", checkpoint=tmp_path, start=torch.ones(40, 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": None, "threshold": 1.0}, "threshold = None instead of 1.0"),
        ({"k": None, "energy": 0.5}, "energy = None instead of 0.5"),
        ({"max_products": 1000}, "max_products = None instead of 1000"),
        ({"memory": "1 GiB"}, "memory = None instead of 1073741824"),
        ({"block": 3}, "block = None instead of 3"),
        ({"choices": {"method": "lanczos", "block": 3}}, "choices = {} instead of {'method': 'lanczos', 'block': 3}"),
        ({"start": torch.ones(40, 1)}, "another start, or none"),
    ],
)
def test_a_journal_is_refused_by_what_the_caller_gave(options: dict[str, object], said: str, tmp_path: Path) -> None:
    svd(MATRICES[0], 4, method="lanczos", checkpoint=tmp_path)
    with pytest.raises(InputError, match=re.escape(f"holds a solve with {said}: repeat its options")):
        svd(MATRICES[0], **({"k": 4, "method": "lanczos", "checkpoint": tmp_path} | options))


def test_a_stale_pass_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    svd(MATRICES[0], 4, method="lanczos", checkpoint=tmp_path)
    (tmp_path / "pass-000002.safetensors").unlink()
    (tmp_path / "pass-000099.safetensors").mkdir()
    with pytest.raises(InputError, match=r"cannot remove .*pass-000099.safetensors .*: give another folder"):
        svd(MATRICES[0], 4, method="lanczos", checkpoint=tmp_path)


def test_a_stale_pass_may_be_removed_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = svd(MATRICES[0], 4, method="lanczos", checkpoint=tmp_path)
    (tmp_path / "pass-000002.safetensors").unlink()
    unlink = Path.unlink

    def too_late(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=True)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", too_late)
    assert_same([first], [svd(MATRICES[0], 4, method="lanczos", checkpoint=tmp_path)])


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized", "auto"])
def test_every_operator_of_a_journal_is_recognised(method: str, tmp_path: Path) -> None:
    A, B = MATRICES[0], MATRICES[0].flip(0)
    svd_batch([A, B], 3, method=method, checkpoint=tmp_path)
    for index, others in enumerate(([2 * A, B], [A, 2 * B])):
        with pytest.raises(InputError, match=f"first product of operator {index} does not"):
            svd_batch(others, 3, method=method, checkpoint=tmp_path)


def test_an_operator_is_recognised_though_its_products_cancel_in_the_sum_of_them(tmp_path: Path) -> None:
    """Sixteen cotangents in one dimension: with this seed their mixture is 3e-3 of what was summed."""
    row = torch.randn(1, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, again = (svd(row, energy=0.8, method="lanczos", seed=30, checkpoint=tmp_path) for _ in range(2))
    assert torch.equal(first.V, again.V)
    with pytest.raises(InputError, match="another operator"):
        svd(1.5 * row, energy=0.8, method="lanczos", seed=30, checkpoint=tmp_path)


@pytest.mark.parametrize("method", ["lanczos", "dense", "randomized", "auto"])
@pytest.mark.parametrize("part", ["row", "column"])
def test_a_change_of_one_row_or_column_is_another_operator(method: str, part: str, tmp_path: Path) -> None:
    A = matrix(spectrum("root", 60), (60, 60))
    other = A.clone()
    (other if part == "row" else other.T)[7] *= 1.5
    svd(A, 3, method=method, checkpoint=tmp_path)
    with pytest.raises(InputError, match="another operator"):
        svd(other, 3, method=method, checkpoint=tmp_path)


@pytest.mark.parametrize("product", ["text", torch.zeros(2, 2)])
def test_what_a_resumed_operator_returns_is_checked(product: object, tmp_path: Path) -> None:
    solve(Cutting(MATRICES), "lanczos", tmp_path)
    broken = Cutting(MATRICES)
    broken.rmatmat = lambda blocks: [product] * len(blocks)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(OperatorError, match="operator 0"):
        solve(broken, "lanczos", tmp_path)


def test_a_solve_that_was_not_finite_is_so_again(tmp_path: Path) -> None:
    A = MATRICES[0].clone()
    A[0] = torch.nan
    assert [svd(A, 3, checkpoint=tmp_path).status for _ in range(2)] == [Status.NOT_FINITE] * 2


@pytest.mark.parametrize("folder", ["", "a\0b", 5, "~no-such-user/x"])
def test_what_names_no_folder_is_refused(folder: object, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="names no folder"):
        svd(MATRICES[0], 4, checkpoint=folder)
    assert not list(tmp_path.iterdir())


def test_choices_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    one, other = (svd(MATRICES[0], 4, choices={"block": block}, checkpoint=tmp_path) for block in (np.int64(3), 3))
    assert torch.equal(one.U, other.U)


def test_folders_that_hold_no_journal_are_left_alone(tmp_path: Path) -> None:
    A = MATRICES[0]
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        svd(A, 4, checkpoint=tmp_path)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "solve.json").write_text("{")
    with pytest.raises(RunFileError, match="damaged"):
        svd(A, 4, checkpoint=tmp_path)
    for damaged in (
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind": "detjac solve", "format": "x"}',
        b'{"kind": "detjac solve", "format": null}',
        b'{"kind": "detjac solve", "format": 0}',
    ):
        (tmp_path / "solve.json").write_bytes(damaged)
        with pytest.raises(RunFileError, match="damaged"):
            svd(A, 4, checkpoint=tmp_path)
    (tmp_path / "solve.json").write_text(json.dumps({"kind": "detjac solve", "format": 99}))
    with pytest.raises(RunFileError, match="format 99, newer than"):
        svd(A, 4, checkpoint=tmp_path)
    (tmp_path / "solve.json").write_text(json.dumps(["x"]))
    with pytest.raises(InputError, match="no solve of ours"):
        svd(A, 4, checkpoint=tmp_path)
    with pytest.raises(InputError, match="names no folder"):
        svd(A, 4, checkpoint=3)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="another folder"):
        svd(A, 4, checkpoint=tmp_path / "file")


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of a pass, in a process of its own; the rest is made here."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path.cwd())!r})
import torch
torch.set_num_threads(1)
from tests.solvers.test_journal import MATRICES, SOLVES, Cutting, solve
from pathlib import Path

class Killed(Cutting):
    def count(self):
        if len(self.calls) == 6:
            os.kill(os.getpid(), signal.SIGKILL)

solve(Killed(MATRICES), "lanczos", Path({str(tmp_path)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("pass-*"))) == 6
    again = Cutting(MATRICES)
    assert_same(solve(again, "lanczos", tmp_path), solve(Cutting(MATRICES), "lanczos", None))


def test_counts_do_not_see_the_column_that_is_sent_again(tmp_path: Path) -> None:
    operator = Recorder(MATRICES[0])
    first = svd(operator, 4, method="lanczos", checkpoint=tmp_path)
    again = svd(operator, 4, method="lanczos", checkpoint=tmp_path)
    assert again.work.products == first.work.products
    assert sum(operator.forward) + sum(operator.transposed) == first.work.products + 1


def test_the_time_of_earlier_passes_counts_as_their_products_do(tmp_path: Path) -> None:
    class Slow(Recorder):
        def spoil(self, product: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return product

    svd(Slow(MATRICES[0]), 4, method="lanczos", checkpoint=tmp_path)
    began = time.perf_counter()
    again = svd(MATRICES[0], 4, method="lanczos", checkpoint=tmp_path)
    assert again.work.seconds > 0.05 * again.work.passes > time.perf_counter() - began

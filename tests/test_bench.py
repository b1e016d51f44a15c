"""Figures of the bench: what is timed, divided and called accurate, and that its rivals solve the same problem."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import floor_ratio, memory
from bench import whole as bench
from bench.dense_autograd import dense_jacobians, detached_model, embed
from bench.measure import in_turns, middle
from bench.methods import residual, value_error
from bench.processor import processor
from bench.propack import singular_values, token_operator
from bench.real_jacobians import Widened, written_out
from bench.stored_jacobians import StoredJacobians
from detjac_lanczos.operators import detach
from detjac_lanczos.solvers import check_operator
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")


def test_methods_take_turns_and_each_turn_is_timed() -> None:
    clock, order = [0.0], []

    def taking(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            clock[0] += seconds * (1 + order.count(name))

        return run

    methods = {"one": taking("one", 1.0), "two": taking("two", 10.0)}
    found = in_turns(methods, {"one": 3, "two": 1}, lambda: clock[0])
    assert order == ["one", "two", "one", "one"]
    assert found == {"one": [2.0, 3.0, 4.0], "two": [20.0]}
    assert middle([9.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize(
    ("maker", "family", "model", "known", "name"),
    [
        ("AuthenticAMD", 25, 17, "AMD EPYC", "Zen 4"),
        ("AuthenticAMD", 25, 1, "AMD EPYC 7763", "AuthenticAMD family 25 model 1"),
        ("AuthenticAMD", 26, 2, "AMD EPYC 9755", "Zen 5"),
        ("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Platinum 8481C", "Xeon family 6 model 143"),
        ("GenuineIntel", 6, 85, "Intel(R) Xeon(R) CPU @ 2.00GHz", "Xeon family 6 model 85"),
        ("GenuineIntel", 6, 154, "12th Gen Intel(R) Core(TM) i7", "GenuineIntel family 6 model 154"),
    ],
)
def test_a_processor_has_a_name_or_goes_by_its_numbers(
    maker: str, family: int, model: int, known: str, name: str
) -> None:
    said = f"processor\t: 0\nvendor_id\t: {maker}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {known}\n"
    told = f"{maker} family {family} model {model}"
    assert processor(said + "\n" + said) == {"name": name, "processor": told}
    assert set(processor("")) == set(processor()) == {"name", "processor"}


def test_a_sweep_is_divided_by_its_floor_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of ratios, not the ratio of medians: a machine that was slow for a turn was slow for both."""
    seconds = {
        "forward": [0.004, 0.030, 0.005],
        "forward floor": [0.002, 0.006, 0.005],
        "transposed": [0.008] * 3,
        "transposed floor": [0.002] * 3,
    }
    monkeypatch.setattr(floor_ratio, "in_turns", lambda calls, *_: {name: seconds[name] for name in calls})
    model = tiny_models.llama(torch.float32)
    (row,) = floor_ratio.ratios(model, tiny_models.prompt_ids(5)[0], (2,))
    assert row == {
        "rows": 2 * (5 + 4 + 3 + 2 + 1),
        "forward": pytest.approx(5.0),
        "forward floor": pytest.approx(5.0),
        "transposed": pytest.approx(8.0),
        "transposed floor": pytest.approx(2.0),
        "forward_ratio": pytest.approx(2.0),
        "transposed_ratio": pytest.approx(4.0),
    }


def test_the_worse_residual_and_the_worst_value_count() -> None:
    J = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    one = torch.tensor([[1.0], [0.0]])
    for matrix in (J, J.T):
        assert residual(matrix, (one, torch.tensor([2.0]), one)) == pytest.approx(0.5)
    eye, values = torch.eye(2), torch.tensor([4.0, 2.2])
    assert value_error(torch.diag(torch.tensor([4.0, 2.0])), (eye, values, eye)) == pytest.approx(0.1)
    assert value_error(torch.diag(torch.tensor([4.0, 2.0])), (eye, values / 2, eye)) == pytest.approx(0.5)


def test_rivals_solve_the_same_problem() -> None:
    """Dense reverse mode through detached modules, and scipy's operator of each token, in both directions."""
    for make in (tiny_models.llama, tiny_models.gemma):
        model, ids = make(), tiny_models.prompt_ids(6)[0]
        batch = detach((model, None), input_ids=ids).jacobians()
        truth = written_out(batch)
        for matrix, operator in zip(truth, batch.operators, strict=True):
            torch.testing.assert_close(matrix, operator.dense(), rtol=1e-12, atol=1e-12)
        twin, embeds = detached_model(model), embed(model, ids)
        found = dense_jacobians(twin, embeds, chunk=7)
        # transformers computes rotary angles in float32
        assert all(float((a - b).norm() / b.norm()) < 1e-6 for a, b in zip(found, truth, strict=True))
        token = token_operator(twin, embeds, 2)
        np.testing.assert_allclose(token @ np.eye(24), truth[2], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(token.H @ np.eye(24), truth[2].T, rtol=1e-5, atol=1e-6)
        u, s, v = singular_values(token, 3, 1e-6)
        np.testing.assert_allclose(s, torch.linalg.svdvals(truth[2])[:3], rtol=1e-4)
        np.testing.assert_allclose(truth[2].numpy() @ v, u * s, rtol=1e-3, atol=1e-4 * s[0])


def test_a_widened_matrix_has_the_values_of_the_narrow_one() -> None:
    J = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = Widened(J, 3)
    assert check_operator(wide).ok
    values = torch.linalg.svdvals(wide.matmat(torch.eye(18, dtype=torch.float64)))
    torch.testing.assert_close(values[:4], torch.linalg.svdvals(J))
    assert float(values[4:].max()) < 1e-12


def test_jacobians_on_disk_are_those_of_the_text_and_are_written_once(tmp_path: Path) -> None:
    model, ids = tiny_models.llama(torch.float32), tiny_models.prompt_ids(4)[0]
    batch = detach((model, None), input_ids=ids).jacobians()
    truth = torch.stack([operator.dense() for operator in batch.operators])
    stored = StoredJacobians(batch, ids, tmp_path)
    torch.testing.assert_close(stored.matrices, truth)
    torch.testing.assert_close(stored.largest_values(), torch.linalg.svdvals(truth)[:, 0].double())
    X, Y = torch.randn(24, 2), torch.randn(24, 3)
    for made, own in (
        (stored.matmat([(2, X)]), batch.matmat([(2, X)])),
        (stored.rmatmat([(1, Y)]), batch.rmatmat([(1, Y)])),
        (stored.rmatmat_shared(Y), batch.rmatmat_shared(Y)),
    ):
        torch.testing.assert_close(made, own)
    torch.testing.assert_close(stored.matmat_sum([(0, X), (3, X)]), (truth[0] + truth[3]) @ X)
    parts = ("shapes", "dtype", "device", "cost", "shared_cost")
    rest = SimpleNamespace(**{name: getattr(batch, name) for name in parts})
    torch.testing.assert_close(StoredJacobians(rest, ids, tmp_path).matrices, truth)


def test_memory_is_told_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "Name:\tpython\nVmHWM:\t       3 kB\nVmRSS:\t       2 kB\n")
    assert memory.peak_of_process() == 3 * 1024
    assert memory._status("VmRSS") == 2 * 1024


LOADED: Any = SimpleNamespace(
    model=SimpleNamespace(config=SimpleNamespace(hidden_size=2)), tokenizer=lambda _: {"input_ids": list(range(99))}
)
TRUTH = torch.diag(torch.tensor([4.0, 2.0]))
EYE = torch.eye(2)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every method its seconds and its triplets; one token has a Jacobian of values 4 and 2."""
    seconds = {"lanczos": [3.0, 1.0, 2.0], "autograd": [8.0], "dense": [9.0, 5.0, 6.0], "auto": [3.0]}
    seconds |= {"ours": [2.0], "glued": [12.0]}
    values = {"lanczos": [4.0, 2.02], "dense": [4.0, 2.0], "auto": [4.0, 2.0]}
    result = SimpleNamespace(status="converged", work=SimpleNamespace(row_sweeps=3.0), method="lanczos")

    def ours(_: Any, method: str) -> Any:
        return [(EYE, torch.tensor(values[method]), EYE)], [result]

    monkeypatch.setattr(bench, "Job", lambda *_: SimpleNamespace(jacobians=lambda: None, tol=1e-3))
    monkeypatch.setattr(bench, "written_out", lambda _: (TRUTH,))
    monkeypatch.setattr(bench, "ours", ours)
    monkeypatch.setattr(bench, "autograd", lambda _: [(EYE, torch.tensor([4.4, 2.0]), EYE)])
    monkeypatch.setattr(bench, "glued", lambda *_: [(EYE, torch.tensor([4.0, 2.5]), EYE)])
    monkeypatch.setattr(bench, "in_turns", lambda methods, *_: {name: seconds[name] for name in methods})


@pytest.mark.usefixtures("timed")
def test_ratios_are_of_the_others_time_to_ours() -> None:
    row = bench._time_methods(LOADED.model, list(range(3)), 1, 5)
    assert row["seconds"] == {"lanczos": 2.0, "autograd": 8.0, "dense": 6.0}
    assert (row["ratio (a)"], row["ratio (a')"]) == (4.0, 3.0)
    assert (row["row-sweeps"], row["share of dense"]) == (3.0, 3.0 / (3 * 2))
    errors = {name: found["value error"] for name, found in row["accuracy"].items()}
    assert errors == {"lanczos": pytest.approx(0.01), "autograd": pytest.approx(0.1), "dense": 0.0}
    assert row["accuracy"]["lanczos"]["residual"] == pytest.approx(0.02 / 2.02)
    auto, _ = bench._auto(LOADED, [])
    assert [found["ratio"] for found in auto] == [1.5] * len(bench.TOKENS)
    glued, _ = bench._glued(LOADED, list(range(3)))
    assert (glued["ratio"], glued["residual"]) == (6.0, pytest.approx(0.2))


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize(("widening", "runs"), [(1, (7, 3, 3)), (2, (3, 2, 2)), (4, (3, 1, 1))])
def test_repeats_are_those_of_ours_on_the_model_itself(
    widening: int, runs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_turns(methods: Any, repeats: dict[str, int]) -> dict[str, list[float]]:
        assert repeats == dict(zip(("lanczos", "autograd", "dense"), runs, strict=True))
        return {name: [1.0] for name in methods}

    monkeypatch.setattr(bench, "in_turns", in_turns)
    assert bench._time_methods(LOADED.model, list(range(3)), widening, 7)["widening"] == widening


def test_the_process_that_memory_is_measured_in_finds_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_: list[str], cwd: Path, **options: Any) -> Any:
        assert (cwd / "bench" / "memory.py").is_file()
        return SimpleNamespace(stdout="a library talks\n7\n")

    monkeypatch.setattr("bench.memory.subprocess.run", run)
    assert memory.extra("ours", 2, 1) == 7


def test_memory_is_compared_in_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "extra", lambda method, *_: {"ours": 2_000_000, "autograd": 8_000_000}[method])
    row, (line,) = bench._memory(None, [])
    assert (row["ours"], row["autograd"], row["ratio"]) == (2.0, 8.0, 0.25)
    assert "ours 2 MB, autograd 8 MB, ratio 0.25" in line

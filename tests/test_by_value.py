"""Results reach another process bit for bit, and hold no file descriptor there for each of their tensors."""

import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from detjac_lanczos import solvers
from detjac_lanczos.operators import Reconstruction
from detjac_lanczos.runs import Run
from detjac_lanczos.runs.token_result import TokenResult
from detjac_lanczos.solvers import Guards, Progress, SVDResult, svd, svd_batch
from tests.test_equality import holders_of_arrays

DESCRIPTOR = b"rebuild_storage"
"""In what torch sends for a tensor whose memory the receiver shares."""


def _sent(held: Any) -> tuple[bytes, Any]:
    sent = bytes(ForkingPickler.dumps(held))
    return sent, pickle.loads(sent)


def test_a_run_and_its_results_share_no_memory() -> None:
    A = torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = svd(A, k=2, certify="complete")
    guards = Guards(*(torch.ones(2, dtype=torch.bfloat16) for _ in range(3)))
    run = Run({"a": [1]}, {"U": result.U, "part of U": result.U[:2]})
    results = [
        result,
        guards,
        run,
        TokenResult({}, result.U, result.S, result.V, guards),
        Reconstruction(A, A, 0, 0, 0),
    ]
    assert DESCRIPTOR in _sent(result.U)[0]
    sent, found = _sent(results)
    assert DESCRIPTOR not in sent
    assert [type(part) for part in found] == [type(part) for part in results]
    assert found[0].certificate == result.certificate and found[0].choices == result.choices
    for name in ("U", "S", "V", "residuals"):
        assert torch.equal(getattr(found[0], name), getattr(result, name))
    assert torch.equal(found[1].U, guards.U) and found[1].U.dtype is torch.bfloat16
    assert found[2].record == run.record and torch.equal(found[2].vectors["part of U"], result.U[:2])
    assert torch.equal(found[3].guards.S, guards.S) and torch.equal(found[4].estimate, A)


def _survey() -> list[SVDResult]:
    A = torch.randn(2, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return svd_batch(list(A), k=1, method="shared_basis")


def test_the_basis_of_a_survey_is_sent_once() -> None:
    results = _survey()
    one, _ = _sent(results[:1])
    sent, (first, second) = _sent(results)
    assert first.missed.basis is second.missed.basis
    assert torch.equal(first.missed.basis, results[0].missed.basis)
    basis = results[0].missed.basis.numpy().tobytes()
    assert DESCRIPTOR not in sent and one.count(basis) == sent.count(basis) == 1


def test_a_survey_outlives_the_worker_that_sent_it_and_holds_no_descriptor() -> None:
    context, results = multiprocessing.get_context("fork"), _survey()
    queue = context.Queue()
    worker = context.Process(target=queue.put, args=(results,), daemon=True)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    held = len(os.listdir("/dev/fd"))
    found = queue.get(timeout=60)
    assert len(os.listdir("/dev/fd")) == held
    assert [torch.equal(one.U, other.U) for one, other in zip(found, results, strict=True)] == [True, True]
    assert torch.equal(found[1].missed.basis, results[1].missed.basis)


def test_what_solvers_return_with_tensors_is_sent_by_value() -> None:
    public = {getattr(solvers, name) for name in solvers.__all__} & set(holders_of_arrays())
    assert [kind for kind in public - {Progress} if kind not in ForkingPickler._extra_reducers] == []

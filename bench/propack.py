"""What a user would glue together: scipy's PROPACK on jvp and vjp of the detached transformers model."""

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from bench.dense_autograd import output_of


def token_operator(twin: Any, embeds: Tensor, token: int) -> LinearOperator:
    """Return J of one token as a scipy operator: one forward (and backward) pass of the model per product."""

    def f(x: Tensor) -> Tensor:
        return output_of(twin, torch.cat([embeds[:, :token], x[None, None], embeds[:, token + 1 :]], dim=1))

    x = embeds[0, token]
    _, pull = torch.func.vjp(f, x)

    def matvec(v: Any) -> Any:
        direction = torch.from_numpy(np.ascontiguousarray(v).reshape(-1)).to(x.dtype)
        return torch.func.jvp(f, (x,), (direction,))[1].detach().numpy()

    def rmatvec(u: Any) -> Any:
        return pull(torch.from_numpy(np.ascontiguousarray(u).reshape(-1)).to(x.dtype))[0].detach().numpy()

    d = x.shape[0]
    return LinearOperator((d, d), matvec=matvec, rmatvec=rmatvec, dtype=np.float32)


def singular_values(operator: LinearOperator, k: int, tol: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return U (d_out, k), S in descending order, V (d_in, k) by PROPACK."""
    u, s, vt = svds(operator, k=k, solver="propack", tol=tol, rng=np.random.default_rng(0))
    order = np.argsort(-s)
    return u[:, order], s[order], vt[order].T

"""What rounding makes of sound operators, in the units of the one safety constant: ``python -m bench.rounding``.

The largest of each figure, over the tiny model of every family and the embedded ones, freeze rules, sources and
precisions, is what ``SAFETY`` stands above (`detjac_lanczos.solvers.rounding`).
"""

from collections.abc import Iterator
from statistics import median

import torch

import detjac_lanczos as dl
from detjac_lanczos.models import load_model
from detjac_lanczos.solvers import LinearOperator
from tests.tiny_models import DENSE, LENGTH, prompt_ids
from tests.tiny_models.moe import MOE

PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COLUMNS = 8


def main() -> None:
    """Print the largest figures of each precision, whose they are, and the middle one."""
    torch.set_num_threads(1)
    for dtype in PRECISIONS:
        found: dict[str, list[tuple[float, str]]] = {}
        for name, J in operators(dtype):
            for kind, figure in figures(J).items():
                found.setdefault(kind, []).append((figure, name))
        for kind, all_of_it in found.items():
            figure, name = max(all_of_it)
            print(f"{dtype} {kind}: at most {figure:.2f} ({name}), median {median(f for f, _ in all_of_it):.2f}")


def operators(dtype: torch.dtype) -> Iterator[tuple[str, LinearOperator]]:
    """Yield Jacobians of one token and of all, from the embeddings and between blocks."""
    for name, make in (DENSE | MOE).items():
        model = make(dtype)
        network = dl.detach((model, None), input_ids=prompt_ids(LENGTH)[0])
        yield f"{name}, joint", network.jacobian("joint")
        yield f"{name}, token 1", network.jacobian(1)
    # In float16 the streams of Gemma 3 overflow.
    for name in ("smollm2",) if dtype is torch.float16 else ("smollm2", "gemma3-270m"):
        network = dl.detach(load_model(name, dtype=dtype), "The bridge out of Marin is the")
        yield f"{name}, joint", network.jacobian("joint")
        yield f"{name}, token 0", network.jacobian(0)


def figures(J: LinearOperator) -> dict[str, float]:
    """Return how far products are from adjoint and from those of single columns, and how far A v_j is from σ_j u_j.

    The first two relative to the products, in units of ε √rows; the last, for triplets of the matrix by LAPACK in
    float64, in units of ε σ₁, and not in float64 itself, where LAPACK's rounding is no less.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = J.shape
    eps = torch.finfo(J.dtype).eps
    V, U = (torch.randn(size, COLUMNS, generator=generator).to(J.dtype) for size in (columns, rows))
    AV, AtU = J.matmat(V).double(), J.rmatmat(U).double()
    alone = torch.cat([J.matmat(v[:, None]) for v in V.T], dim=1).double()
    gap = (U.double().T @ AV - AtU.T @ V.double()).abs() / (AV.norm(dim=0) * U.double().norm(dim=0)[:, None])
    found = {
        "adjoint": float(gap.nan_to_num().max()) / (eps * max(J.shape) ** 0.5),
        "alone": float(((AV - alone).norm() / AV.norm()).nan_to_num()) / (eps * max(J.shape) ** 0.5),
    }
    if J.dtype is not torch.float64:
        left, values, right = torch.linalg.svd(J.dense().double(), full_matrices=False)
        products = J.matmat(right[:COLUMNS].T.to(J.dtype).contiguous()).double()
        apart = (products - left[:, :COLUMNS] * values[:COLUMNS]).norm(dim=0).max() / values[0]
        found["residual"] = float(apart.nan_to_num()) / eps
    return found


if __name__ == "__main__":
    main()

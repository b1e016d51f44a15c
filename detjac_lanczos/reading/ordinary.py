"""The ordinary Jacobians times the input: what detaching is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from detjac_lanczos.frozen.places import Place
from detjac_lanczos.operators import DetachedNetwork


def ordinary_estimate(
    network: DetachedNetwork,
    *,
    prompt: int = 0,
    source: str | Place = "embeddings",
    target: str | Place = "output",
    position: int = -1,
) -> Tensor:
    """Return Σ_i J_i x_i with the ordinary Jacobians J_i of the model, nothing frozen: (d_out,).

    The nonlinear model is no sum of its ordinary Jacobians: this misses y where `reconstruction` meets it. One product,
    with the input as its own tangent. Parameters and errors as in `DetachedNetwork.jacobian`.
    """
    J = network.jacobian((prompt, "joint"), source=source, target=target, position=position, frozen=False)
    return J.reconstruction.estimate


def ordinary_products(
    network: DetachedNetwork,
    *,
    prompt: int = 0,
    source: str | Place = "embeddings",
    target: str | Place = "output",
    position: int = -1,
) -> Tensor:
    """Return J_i x_i of every token up to the position, with the ordinary Jacobians of the model: (tokens, d_out).

    Parameters and errors as in `DetachedNetwork.jacobian`.
    """
    last = network.jacobian((prompt, position), source=source, target=target, position=position).position
    tokens = [(prompt, i) for i in range(last + 1)]
    batch = network.jacobians(tokens, source=source, target=target, position=position, frozen=False)
    products = batch.matmat([(i, J.x[:, None]) for i, J in enumerate(batch.operators)])
    return torch.cat(products, dim=1).T

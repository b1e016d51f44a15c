"""The head that left vectors decode through, with all that the model does to its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.words import Project, Scale, Softcap, as_written
from detjac_lanczos.models.linear_modules import bias_of, weight_of
from detjac_lanczos.operators import DetachedNetwork
from detjac_lanczos.operators.bars import bar, relative

_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Head:
    """From an output y to logits: c tanh(s (W y + b) / c), or s (W y + b) without a softcap.

    Attributes
    ----------
    table : Tensor, shape (vocabulary, d)
        W.
    bias : Tensor, shape (vocabulary,), or None
    scale : float
    softcap : float or None
    """

    table: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, products: Tensor, start: int, stop: int) -> Tensor:
        """Return s (W y + b) in the rows from start to stop from their products W y, both (stop − start, K)."""
        z = products if self.bias is None else products + self.bias[start:stop, None].to(products)
        return z * self.scale


@in_own_precision
def head_of(network: DetachedNetwork) -> Head:
    """Return the head of a network's model.

    Raises
    ------
    UnsupportedModelError
        If the model has none, or does something to its logits that is not understood.
    """
    module = network.model_of_pass.get_output_embeddings()
    if module is None:
        raise UnsupportedModelError("decoding needs a dense output head (vocabulary, hidden size); this model has none")
    head = Head(weight_of(module, "the output head").dense(), bias_of(module))
    if network.route == "autograd":
        return replace(head, scale=_fitted_scale(network, head))
    model, (project, *rest) = network.family.causal_model_of(network.model_of_pass), network.family.logits
    softcap = None
    if rest and isinstance(last := rest[-1], Softcap):
        softcap = attrgetter(last.attribute)(model)
        rest.pop()
    scales = [word.factor(model) for word in rest if isinstance(word, Scale)]
    if not isinstance(project, Project) or model.get_submodule(project.path) is not module or len(scales) < len(rest):
        raise UnsupportedModelError(
            f"vectors are decoded through a head, then scales, then a softcap; the logits of {network.family.name} are "
            f"{as_written(network.family.logits)}"
        )
    return replace(head, scale=math.prod(scales), softcap=softcap)


def _fitted_scale(network: DetachedNetwork, head: Head) -> float:
    """Return by how much the logits of a model that no family declares are more than W y + b."""
    ends = [network.start_of(i) + n - 1 for i, n in enumerate(network.lengths)]
    outputs = network.streams.output[ends].T
    wide = torch.promote_types(outputs.dtype, torch.float32)
    parts = [
        head.logits(rows.to(outputs.device, wide) @ outputs.to(wide), at * _ROWS, (at + 1) * _ROWS)
        for at, rows in enumerate(head.table.split(_ROWS))
    ]
    plain, logits = torch.cat(parts).double(), network.streams.logits.T.to(outputs.device).double()
    scale = float((plain * logits).sum() / plain.square().sum().clamp_min(torch.finfo(plain.dtype).tiny))
    if relative(scale * plain - logits, logits) > bar(network.dtype):
        raise UnsupportedModelError(
            f"the logits of {network.family.name} are no multiple of what its head gives: what it does to them is not "
            "understood, so that vectors cannot be decoded; svd(network.jacobian(...)) finds them"
        )
    return scale

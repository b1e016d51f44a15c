"""Whether a model around a text decoder does with text what the decoder and the head do, and nothing else."""

from __future__ import annotations

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.operators.network import DetachedNetwork
from detjac_lanczos.operators.self_check import bar, relative


def require_text_decoder(network: DetachedNetwork) -> None:
    """Compare Σ J_i x_i + offset, from the embeddings to the logits, with the model's logits after every prompt.

    Raises
    ------
    UnsupportedModelError
        If they differ by more than a sound network does.
    """
    for prompt, logits in enumerate(network.streams.logits):
        estimate = network.jacobian((prompt, "joint"), target="logits").reconstruction.estimate
        error = relative(estimate - logits, logits)
        if not error <= bar(network.dtype):
            name = type(without_adapters(network.model)).__name__
            raise UnsupportedModelError(
                f"{name} does more with text than its decoder and its head ({network.family.name}): logits differ by "
                f"{error:.1e}; give the text model inside it"
            )

"""gpt-oss with its experts as they are stored, in MXFP4: loaded packed, run and swept from their own bytes.

transformers has kernels for such experts that run on some devices only, and keep the bytes in an order of their own;
elsewhere it decodes them all as it loads, to four times the memory. Here a model has the same modules but for its
experts, which hold the checkpoint's tensors under the checkpoint's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from detjac_kernels.mxfp4 import BLOCK, PackedMxfp4
from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.models.decoded import DecodedWeight, decoded_product


class Mxfp4Experts(nn.Module):
    """The routed experts of a gpt-oss block. Codes are (experts, f, d / 32, 16), their scales (experts, f, d / 32)."""

    MATRICES = ("gate_up_proj", "down_proj")

    gate_up_proj_bias: Tensor
    down_proj_bias: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.num_experts, self.alpha, self.limit = config.num_local_experts, config.swiglu_alpha, config.swiglu_limit
        for name, f, d in (
            ("gate_up_proj", 2 * config.intermediate_size, config.hidden_size),
            ("down_proj", config.hidden_size, config.intermediate_size),
        ):
            if d % BLOCK:
                raise UnsupportedModelError(f"MXFP4 experts of width {d}: rows are no whole blocks of {BLOCK}")
            for key, shape in (("blocks", (f, d // BLOCK, BLOCK // 2)), ("scales", (f, d // BLOCK))):
                stored = torch.empty(self.num_experts, *shape, dtype=torch.uint8)
                self.register_parameter(f"{name}_{key}", nn.Parameter(stored, requires_grad=False))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(self.num_experts, f)))

    def weight(self, name: str, expert: int, rows: slice = slice(None)) -> DecodedWeight:
        """Return some rows of the matrix "gate_up_proj" or "down_proj" of one expert."""
        codes, scales = getattr(self, f"{name}_blocks")[expert], getattr(self, f"{name}_scales")[expert]
        packed = PackedMxfp4(codes.detach().flatten(1), scales.detach())
        return DecodedWeight(packed, (range(packed.shape[0])[rows],))

    def forward(self, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor) -> Tensor:
        """Send positions (n, d) to their experts (n, k), weighted (n, k): (n, d)."""
        out = torch.zeros_like(hidden_states)
        for e in router_indices.unique().tolist():
            token, slot = torch.where(router_indices == e)
            both = decoded_product(hidden_states[token], self.weight("gate_up_proj", e)) + self.gate_up_proj_bias[e]
            gate, up = both[:, ::2].clamp(max=self.limit), both[:, 1::2].clamp(-self.limit, self.limit)
            product = (up + 1) * (gate * torch.sigmoid(gate * self.alpha))
            made = decoded_product(product, self.weight("down_proj", e)) + self.down_proj_bias[e]
            out = out.index_add(0, token, (made * routing_weights[token, slot, None]).to(out.dtype))
        return out


def stored_in_mxfp4(config: Mapping[str, Any]) -> bool:
    """Tell from a ``config.json`` whether a checkpoint is a gpt-oss with packed experts."""
    packed: Any = config.get("quantization_config") or {}
    return config.get("model_type") == "gpt_oss" and packed.get("quant_method") == "mxfp4"


@cache
def gpt_oss_with_packed_experts() -> Any:
    """Return transformers' class of gpt-oss, under its own name, with such experts."""
    import transformers

    class GptOssForCausalLM(transformers.GptOssForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp.experts = Mxfp4Experts(config)

    return GptOssForCausalLM


def config_without_packing(source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a configuration, and the options that are none of its own.

    What it says of packing is left out: transformers would decode the experts, or put them in another order.
    """
    from transformers import AutoConfig

    config, rest = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **options)
    del config.quantization_config
    return config, rest


def refuse_reordered_experts(model: nn.Module) -> None:
    """Refuse experts that transformers has put in the order of its own MXFP4 kernels.

    Raises
    ------
    UnsupportedModelError
        Naming the first.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "Mxfp4GptOssExperts":
            raise UnsupportedModelError(
                f"{name} (Mxfp4GptOssExperts) keeps its experts in the order of transformers' MXFP4 kernels; load the "
                "model by its name with load_model, which reads them as they are stored"
            )

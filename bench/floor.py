"""The floor under a sweep: its GEMMs alone, on the road measured fastest, the mixing product counted as one."""

from typing import Any

import torch

from detjac_kernels import linear, linear_transposed, mix


def gemms(model: Any, rows: int, tokens: int, transposed: bool) -> None:
    """Run the GEMMs of one sweep of a Llama model over ``rows`` rows, all tokens of a prompt in lockstep.

    In the last block only the values see all rows; after its mixing one row a column is left.
    """
    config = model.config
    layers = model.model.layers
    columns = max(1, rows // _segment_rows(tokens)) * tokens
    width = layers[0].self_attn.head_dim
    groups = config.num_attention_heads // config.num_key_value_heads
    p = torch.ones(config.num_key_value_heads, groups * tokens, tokens)
    v = torch.ones(config.num_key_value_heads, groups * tokens if transposed else tokens, columns * width)
    product = linear_transposed if transposed else linear
    mixing = p.transpose(1, 2).contiguous() if transposed else p
    inputs: dict[tuple[int, int], torch.Tensor] = {}
    for index, layer in enumerate(layers):
        attention, mlp = layer.self_attn, layer.mlp
        after = columns if index == len(layers) - 1 else rows
        for module, r in (
            (attention.v_proj, rows),
            (attention.o_proj, after),
            (mlp.up_proj, after),
            (mlp.down_proj, after),
        ):
            weight = module.weight.detach()
            d = weight.shape[0] if transposed else weight.shape[1]
            if (r, d) not in inputs:
                inputs[r, d] = torch.randn(r, d)
            product(inputs[r, d], weight)
        mix(mixing, v)


def _segment_rows(tokens: int) -> int:
    return tokens * (tokens + 1) // 2

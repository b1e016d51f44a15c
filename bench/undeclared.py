"""Decoders of transformers that no family declares, tiny and random: which are understood, and how exact they are.

Every class that transformers lists for causal language models is built from its own configuration with small sizes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import detjac_lanczos as dl
from detjac_lanczos.errors import ModelError, UnsupportedModelError, in_one_line
from detjac_lanczos.frozen.families import FAMILIES
from tests import oracle_structures
from tests.oracle_structures import Branch, FreezeMLPs, Freezer, Structure, activations, fused, replaced_forwards
from tests.oracles import OracleA, embeddings_of, errors
from tests.tiny_models import LENGTH, prompt_ids
from tests.tiny_models.draw import VOCABULARY, drawn

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "dff", "ffn_hidden_size"), 40),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers", "n_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "decoder_attention_heads", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), None),
}
HEAD_WIDTHS = dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8)
MOST_PARAMETERS = 150_000_000
AGREEMENT = 1e-11
"""The bar of J in float64. Above it the oracle has frozen something else, which says nothing of J."""
DECODERS = ("model", "transformer", "model.decoder", "biogpt", "gpt_neox", "decoder", "model.model")
BLOCKS = ("layers", "h", "blocks")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
MLPS = ("mlp", "ffn", "feed_forward", "fc2")
ACTIVATIONS = ("mlp.act", "mlp.act_fn", "activation_fn", "mlp.activation_fn", "mlp.gelu_impl")


def survey() -> list[dict[str, Any]]:
    """Return a row for every class: its route and figures, or what it was refused for; or why it could not be run.

    Left out are classes around a decoder that has one of its own here, "…ForConditionalGeneration".
    """
    declared = {name for family in FAMILIES for name in family.classes}
    names = dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return [row(name) for name in names if name not in declared and not name.endswith("ForConditionalGeneration")]


def row(name: str) -> dict[str, Any]:
    """Return what became of one class."""
    try:
        model = _tiny(name)
    except Exception as error:
        return {"class": name, "not_built": in_one_line(error)[:200]}
    try:
        return {"class": name, **_figures(model)}
    except UnsupportedModelError as error:
        return {"class": name, "refused": in_one_line(error)[:200]}
    except ModelError as error:  # its own pass fails on these sizes
        return {"class": name, "not_built": in_one_line(error)[:200]}


def _tiny(name: str) -> Any:
    kind = getattr(transformers, name)
    try:
        config = kind.config_class(**SIZES, **HEAD_WIDTHS)
    except AttributeError:  # it derives one of them
        config = kind.config_class(**SIZES)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in kind(copy.deepcopy(config)).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f} M parameters in spite of small sizes")
    return drawn(kind(config), torch.float64)


def _figures(model: Any) -> dict[str, Any]:
    ids = prompt_ids(LENGTH)[0]
    network = dl.detach((model, None), input_ids=ids)
    J = network.jacobian("joint").dense()
    found = J.view(J.shape[0], len(ids), -1)
    agreement = None
    for structure in _structures(model):
        with _known(model, structure):
            try:
                expected = OracleA(model, embeddings_of(model, ids)).jacobian("embeddings", "output", len(ids) - 1)
            except (AttributeError, KeyError, RuntimeError, TypeError):
                continue
        off = max(errors(found, expected))
        if off <= AGREEMENT:
            agreement = off
            break
    single = dl.detach((copy.deepcopy(model).float(), None), input_ids=ids)
    return {
        "route": network.route,
        "reverse": agreement,
        "reconstruction": network.reconstruction.norm_error,
        "reconstruction32": single.reconstruction.norm_error,
    }


def _structures(model: Any) -> Iterator[Structure]:
    """Yield where the oracle may find the parts; one that is wrong freezes something else, and agrees with nothing."""
    for decoder in DECODERS:
        blocks = next((b for b in BLOCKS if _has(model, f"{decoder}.{b}.0")), None)
        if blocks is None:
            continue
        first = model.get_submodule(f"{decoder}.{blocks}.0")
        attention = next((Branch(path) for path in ATTENTIONS if _has(first, path)), None)
        mlp = next((Branch(path) for path in MLPS if _has(first, path)), None)
        if attention is None or mlp is None:
            continue
        whole = {"decoder": decoder, "blocks": blocks, "attention": attention, "mlp": mlp}
        yield Structure(**whole)
        yield Structure(**whole, freeze_mlps=fused)
        for path in ACTIVATIONS:
            if _has(first, path):
                yield Structure(**whole, freeze_mlps=activations(path))
                yield Structure(**whole, freeze_mlps=_gates(path))


def _gates(path: str) -> FreezeMLPs:
    """Gated MLPs with more between gate and output, a norm say: what the activation gives is frozen where it leaves."""

    @contextmanager
    def freeze_mlps(model: Any, freeze: str, freezer: Freezer) -> Iterator[None]:
        modules = [block.get_submodule(path) for block in oracle_structures.blocks_of(model)]
        with replaced_forwards(modules, lambda act: lambda z, of=act.forward: freezer(of(z))):
            yield

    return freeze_mlps


def _has(module: Any, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


@contextmanager
def _known(model: Any, structure: Structure) -> Iterator[None]:
    """Enter a structure in the oracles' table for a while."""
    name, table = type(model).__name__, oracle_structures.STRUCTURES
    before = table.get(name)
    table[name] = structure
    try:
        yield
    finally:
        table.pop(name) if before is None else table.update({name: before})

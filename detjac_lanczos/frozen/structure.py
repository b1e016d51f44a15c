"""A decoder that no family declares, recognised by its structure before any of it runs.

Blocks of norms, attention that goes through transformers' attention interface, and MLPs with one activation module:
what is frozen in these is known wherever it stands. Whatever else computes something by itself is not understood.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.copy_at_rest import copy_at_rest
from detjac_lanczos.models.adapters import is_adapted, require_readable_adapters, without_adapters
from detjac_lanczos.models.linear_modules import is_dense
from detjac_lanczos.models.packed_modules import is_packed
from detjac_lanczos.models.text_model import text_config_of, token_table_of

_NAMED_AT_MOST = 4
_KINDS = {
    "Mamba": "a state-space layer",
    "BambaMixer": "a state-space layer",
    "FalconH1Mixer": "a state-space layer",
    "Delta": "linear attention",
    "LinearAttention": "linear attention",
    "LightningAttention": "linear attention",
    "Rwkv": "a recurrence",
    "Recurrent": "a recurrence",
    "xLSTM": "a recurrence",
    "ShortConv": "a convolution",
    "Conv1d": "a convolution",
    "AltUp": "stacked residual streams",
    "Laurel": "a low-rank branch of its own",
    "Experts": "routed experts",
    "Moe": "routed experts",
    "MoE": "routed experts",
    "Router": "routed experts",
    "Gemma4": "per-layer embeddings",
}
"""What classes are, by a part of their name; the first that fits."""


@dataclass(frozen=True)
class Structure:
    """Where a decoder keeps its blocks and what is frozen in it.

    Attributes
    ----------
    decoder : str
        Path of the module that holds the blocks, in the model.
    blocks : str
        Path of the list of blocks, in the decoder.
    norms, attentions, mlps : tuple of str
        Paths in the model; an MLP is the module that holds an activation and the linear modules around it.
    """

    decoder: str
    blocks: str
    norms: tuple[str, ...]
    attentions: tuple[str, ...]
    mlps: tuple[str, ...]

    @property
    def path(self) -> str:
        """Path of the list of blocks in the model."""
        return f"{self.decoder}.{self.blocks}".lstrip(".")


def recognise(model: nn.Module) -> Structure:
    """Find blocks, norms, attention and MLPs of a causal language model, without running it.

    Raises
    ------
    UnsupportedModelError
        If there is anything else in the decoder; the message names modules and their classes.
    """
    require_readable_adapters(model)
    whole: Any = without_adapters(copy_at_rest(model))  # where a compiled module is the one that it was made of
    path = _path_of_blocks(whole)
    decoder, _, blocks = path.rpartition(".")
    search = _Search()
    embeddings = token_table_of(whole)
    for name, module in _children(whole.get_submodule(decoder)):
        place = f"{decoder}.{name}".lstrip(".")
        if name == blocks:
            for index, block in _children(module):
                search.block(block, f"{place}.{index}")
        elif module is not embeddings:
            search.beside_blocks(module, place, embeddings)
    if search.unknown:
        # One of a kind is enough.
        kinds = list({type(module).__name__: (place, module) for place, module in reversed(search.unknown)}.items())
        named = [f"{_in_words(kind)}{place} ({kind})" for kind, (place, _) in reversed(kinds)]
        more = "" if len(named) <= _NAMED_AT_MOST else f" and {len(named) - _NAMED_AT_MOST} more"
        raise UnsupportedModelError(f"not understood: {', '.join(named[:_NAMED_AT_MOST])}{more}")
    if not search.attentions:
        raise UnsupportedModelError(f"{path} holds no attention that goes through transformers' attention interface")
    return Structure(decoder, blocks, tuple(search.norms), tuple(search.attentions), tuple(search.mlps))


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the children of a module by name, those that stand at several places at each of them."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _in_words(kind: str) -> str:
    """Return what a class is in words, where its name says so."""
    return next((f"{words} at " for part, words in _KINDS.items() if part in kind), "")


@dataclass
class _Search:
    """What a walk through the modules has met so far."""

    norms: list[str] = field(default_factory=list)
    attentions: list[str] = field(default_factory=list)
    mlps: list[str] = field(default_factory=list)
    unknown: list[tuple[str, nn.Module]] = field(default_factory=list)

    def block(self, block: nn.Module, path: str) -> None:
        """Look through a block. It may hold its MLP as modules of its own (OPT); then it holds no other."""
        before = len(self.mlps)
        for name, child in _children(block):
            if not is_activation(child):
                self._inside(child, f"{path}.{name}")
        if any(map(is_activation, block.children())):
            if len(self.mlps) == before and _is_mlp(block):
                self.mlps.append(path)
            else:
                self.unknown.append((path, block))

    def beside_blocks(self, module: nn.Module, path: str, embeddings: Any) -> None:
        """Look at a child of the decoder: position tables, the final norm, projections."""
        if isinstance(module, nn.Embedding):
            if module.num_embeddings == len(embeddings.weight):
                # A second table of tokens feeds the blocks by another way than the embeddings.
                self.unknown.append((path, module))
        else:
            self._inside(module, path)

    def _inside(self, module: nn.Module, path: str) -> None:
        children = [(f"{path}.{name}", child) for name, child in _children(module)]
        if is_norm(module):
            self.norms.append(path)
        elif _is_linear(module) or _computes_nothing(module):
            pass
        elif _dispatches(module):
            self.attentions.append(path)
            for place, child in children:
                self._inside(child, place)
        elif _is_mlp(module) and all(map(_belongs_in_mlp, module.children())):
            self.mlps.append(path)
            self.norms += [place for place, child in children if is_norm(child)]
        elif children and (type(module) in (nn.Sequential, nn.ModuleList) or all(map(is_norm, _leaves(module)))):
            for place, child in children:
                self._inside(child, place)
        else:
            self.unknown.append((path, module))


def _path_of_blocks(model: Any) -> str:
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder, not a decoder")
    try:
        inspect.signature(type(model).forward).bind(model, inputs_embeds=None)
    except TypeError:
        raise UnsupportedModelError(
            f"{type(model).__name__}.forward cannot be called with inputs_embeds alone"
        ) from None
    count = getattr(text_config_of(model), "num_hidden_layers", None)
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and not isinstance(module[0], nn.ModuleList)
    ]
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        found = ", ".join(outer) or "none"
        raise UnsupportedModelError(f"{type(model).__name__} has no single list of {count} blocks; found {found}")
    return outer[0]


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module calls itself a norm; whether it is one, its values say."""
    named = type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    return (named or isinstance(module, nn.LayerNorm | nn.RMSNorm)) and not any(True for _ in module.children())


def is_activation(module: nn.Module) -> bool:
    """Tell whether a module is an elementwise activation of torch or transformers."""
    home = type(module).__module__
    return home in ("torch.nn.modules.activation", "transformers.activations") and not isinstance(
        module, nn.MultiheadAttention
    )


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    inside: Any = module._modules["base_layer"] if is_adapted(module) else module
    return is_dense(inside) or type(inside) is Conv1D or is_packed(inside)


def _computes_nothing(module: nn.Module) -> bool:
    """Tell whether a module leaves the stream as it is, or does not read its values: dropout, rotary tables."""
    if isinstance(module, nn.Dropout | nn.Identity):
        return True
    return type(module).__name__.endswith("RotaryEmbedding") and not any(True for _ in module.parameters())


def _dispatches(module: nn.Module) -> bool:
    """Tell whether a module's forward asks transformers' registry for its attention function."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _is_mlp(module: nn.Module) -> bool:
    """Tell whether a module holds one activation among two linear modules, or three."""
    children = list(module.children())
    return sum(map(is_activation, children)) == 1 and sum(map(_is_linear, children)) in (2, 3)


def _belongs_in_mlp(module: nn.Module) -> bool:
    return is_activation(module) or is_norm(module) or _is_linear(module) or _computes_nothing(module)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if not any(True for _ in part.children()))

"""A copy of a model's structure that shares every tensor with it.

What observes a forward pass is set on the copy, so the caller's modules and configuration are never touched, not even
for a moment, and two threads may capture at once.
"""

import copy
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from detjac_lanczos.errors import UnsupportedModelError, shortage
from detjac_lanczos.models.adapters import require_readable_adapters
from detjac_lanczos.models.bitsandbytes import leave_weights_alone, require_not_repacked
from detjac_lanczos.models.dtypes import compute_dtype
from detjac_lanczos.models.mxfp4 import refuse_reordered_experts
from detjac_lanczos.models.offloaded import kept_by_hooks, require_values
from detjac_lanczos.models.text_model import configurations_of

HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@torch.inference_mode(False)
def structural_copy(model: nn.Module) -> Any:
    """Return a copy whose tensors are the model's own, without the caller's hooks, in eval mode.

    accelerate's hooks stay, and share their weight maps: an offloaded model's values are read as it runs.
    Rotary frequency buffers are copied for real: some rope kinds rewrite them during a forward pass.

    Raises
    ------
    UnsupportedModelError
        If something in the model cannot be copied, has no values, or is an adapter that cannot be read; the
        message names it.
    """
    twin = copy_with_tensors(model, {})
    _tell_places_apart(twin)
    for config in configurations_of(twin):
        config.return_dict = True
    for name, module in twin.named_modules():
        leave_weights_alone(module, name)
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.register_forward_pre_hook(_forget_lengths)
        if "longrope" in str(getattr(module, "rope_type", "")):
            _find_long_frequencies(module)
    if compute_dtype(twin) is torch.float64:
        use_plain_experts(twin)
    return twin.eval()


def copy_with_tensors(model: nn.Module, others: Mapping[int, Tensor]) -> Any:
    """Return a copy without hooks that shares every tensor but those which others replace, by their ids.

    Raises
    ------
    UnsupportedModelError
        As `structural_copy`.
    """
    require_readable_adapters(model)
    require_values(model)
    require_not_repacked(model)
    refuse_reordered_experts(model)
    _require_plain_hooks(model)
    _require_own_forwards(model)
    _require_tables_left_alone(model)
    try:
        twin = copy.deepcopy(model, _shared(model) | dict(others))
    except Exception as error:
        if shortage(error):
            raise
        raise UnsupportedModelError(f"{_culprit(model)} cannot be copied: {error}") from error
    unwrap_compiled(twin)
    return twin


def _shared(model: nn.Module) -> dict[int, Any]:
    """Return what a deepcopy of a model takes over as it is, by id: tensors; and hooks, that it lacks."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in HOOK_TABLES:
            memo[id(module.__dict__[table])] = OrderedDict()
        for shared in (*_tensors(module), *kept_by_hooks(module)):
            memo[id(shared)] = shared
    return memo


def _tell_places_apart(twin: Any) -> None:
    """Give every place a module of its own where the model has one at several: hooks then know where it runs.

    The table of tokens, and what holds it, stays one: its place is the model's to say.
    """
    table = twin.get_input_embeddings()
    seen = set()

    def walk(module: nn.Module) -> None:
        for name, child in module._modules.items():
            if child is None:
                continue
            if child in seen:
                if any(part is table for part in child.modules()):
                    continue
                configs = {id(part.config): part.config for part in child.modules() if "config" in vars(part)}
                child = module._modules[name] = copy.deepcopy(child, _shared(child) | configs)
            seen.add(child)
            walk(child)

    walk(twin)


def unwrap_compiled(twin: nn.Module) -> None:
    """Put every module, or its own `forward`, in the place of what `torch.compile` made of it.

    Forward-mode differentiation cannot pass through a compiled module, and a compiled `forward` stays bound to the
    original module, not to the copy.
    """
    for module in list(twin.modules()):
        for name, child in module._modules.items():
            if child is not None and "_orig_mod" in child._modules:
                module._modules[name] = child._modules["_orig_mod"]
    for module in twin.modules():
        if isinstance(module.__dict__.get("forward"), FunctionType):
            del module.__dict__["forward"]


def leave_inputs_alone(twin: nn.Module) -> None:
    """Have torch's own modules compute beside their inputs, which are observed; only ever those of a copy."""
    for module in twin.modules():
        if vars(module).get("inplace") is True and type(module).__module__.startswith("torch.nn."):
            vars(module)["inplace"] = False


def _require_own_forwards(model: nn.Module) -> None:
    """Refuse a function set as a forward, unless `torch.compile` made it of the module's own."""
    for path, module in model.named_modules():
        forward = module.__dict__.get("forward")
        if "_orig_mod" in module._modules or not isinstance(forward, FunctionType):
            continue
        compiled = getattr(forward, "_torchdynamo_orig_callable", None)
        own = getattr(compiled, "__self__", None) is module
        if not (own and getattr(compiled, "__func__", None) is type(module).forward):
            raise UnsupportedModelError(
                f"a function was set as the forward of {path or 'the model'} ({type(module).__name__}), so that "
                "nothing is known of what it computes; take it off first (`del module.forward`)"
            )


def _require_tables_left_alone(model: nn.Module) -> None:
    """Refuse an embedding that rescales rows of its table, which is the caller's, as they are looked up."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise UnsupportedModelError(
                f"{path} ({type(module).__name__}) has max_norm={module.max_norm}, by which a forward pass writes to "
                "its weight; rescale the rows once (torch.renorm) and set max_norm = None"
            )


def _find_long_frequencies(rotary: Any) -> None:
    """Have "longrope" compute the frequencies of long prompts as its model does: in float32, not in a lifted pass.

    Where blocks differ in kind, each kind may have frequencies of its own.
    """
    kinds = rotary.rope_type.items() if isinstance(rotary.rope_type, dict) else [(None, rotary.rope_type)]
    table = next(rotary.buffers())
    for kind, rope in kinds:
        if rope == "longrope":
            parameters = rotary.config.rope_parameters
            whole = (parameters if kind is None else parameters[kind])["original_max_position_embeddings"]
            rotary(table, torch.tensor([[whole]], device=table.device), *([] if kind is None else [kind]))


def _forget_lengths(rotary: Any, _: Any) -> None:
    """Let "dynamic" rotary frequencies follow the prompt that runs, not the longest that ever ran."""
    for name, buffer in list(rotary._buffers.items()):
        if name.endswith("original_inv_freq"):
            prefix = name.removesuffix("original_inv_freq")
            rotary.register_buffer(f"{prefix}inv_freq", buffer.clone(), persistent=False)
            if hasattr(rotary, f"{prefix}max_seq_len_cached"):
                setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)


def _require_plain_hooks(model: nn.Module) -> None:
    """Refuse weights made by hooks."""
    for name, module, maker in _forward_hooks(model):
        if maker.startswith("torch.nn.utils"):
            raise UnsupportedModelError(
                f"{name} ({type(module).__name__}) makes its weight anew by a hook of {maker}; make it permanent first "
                "(remove_weight_norm, prune.remove)"
            )


def tell_of_hooks(model: nn.Module) -> None:
    """Warn, at the line outside of the package that led here, of forward hooks that a copy leaves out."""
    left_out = [
        name or type(model).__name__
        for name, _, maker in _forward_hooks(model)
        if not maker.startswith(("transformers.", "accelerate."))
    ]
    if left_out:
        frame, level = sys._getframe(1), 2
        inside = ("detjac_lanczos.", "torch.", "contextlib")
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(inside):
            frame, level = frame.f_back, level + 1
        warnings.warn(
            f"forward hooks on {', '.join(dict.fromkeys(left_out))} have no part in the detached network: it is "
            "that of the model without them",
            stacklevel=level,
        )


def _forward_hooks(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the path and the module of every forward hook, and the module of code that it is from."""
    for name, module in model.named_modules():
        for table in ("_forward_pre_hooks", "_forward_hooks"):
            for hook in module.__dict__[table].values():
                maker = getattr(type(hook) if not hasattr(hook, "__module__") else hook, "__module__", "") or ""
                yield name, module, maker


def use_plain_experts(twin: Any) -> None:
    """Run experts one by one: the grouped product that transformers prefers takes neither float64 nor odd widths."""
    for config in configurations_of(twin):
        config._experts_implementation = "eager"


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for name, buffer in module._buffers.items():
        if buffer is not None and "inv_freq" not in name:
            yield buffer
    for name, value in module.__dict__.items():
        if name != "_buffers":
            yield from _reachable(value, depth=3)


def _reachable(value: Any, depth: int) -> Iterator[Tensor]:
    """Tensors in a value and, to a depth, in the containers and plain objects it holds (quantisation states, hooks)."""
    if isinstance(value, Tensor):
        yield value
        yield from _reachable(getattr(value, "__dict__", {}), depth)
    elif isinstance(value, nn.Module) or depth == 0:
        return
    elif isinstance(value, dict):
        for item in value.values():
            yield from _reachable(item, depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _reachable(item, depth - 1)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _reachable(vars(value), depth - 1)


def _culprit(model: nn.Module) -> str:
    """Name the first module whose own state does not survive a deepcopy."""
    for name, module in model.named_modules():
        own = {
            k: v for k, v in module.__dict__.items() if k not in ("_modules", "_parameters", "_buffers", *HOOK_TABLES)
        }
        try:
            copy.deepcopy(own)
        except Exception:
            return f"module {name or type(model).__name__} ({type(module).__name__})"
    return f"the model {type(model).__name__}"

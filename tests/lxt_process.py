"""Jacobians by reverse mode through transformers as LXT patches it: ``python -m tests.lxt_process OUT.safetensors``.

LXT (Achtibat et al., AttnLRP, ICML 2024) stops gradients in the classes of transformers themselves, for as long as the
process lives, so it has one of its own. Its CP-LRP rules detach queries and keys, 1/rms or 1/std of norms, and the gate
of gated MLPs: the map of ``freeze="gate"``. With the gated MLP of its AttnLRP rules in place of theirs, which halves
the gradients of both factors, it is the map of ``freeze="half"``.

It differs from ours in one thing: act(z)/z is act(z)/(z + 1e-10) there, in GPT-2's MLP and in the halved ones, which
moves the J of a tiny GPT-2 by 2e-9 of itself. Here that ε is 0.
"""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.oracles import Lifted, embeddings_of
from tests.tiny_models import DENSE, LENGTH, prompt_ids


def leave_out(name: str, modeling: str, rules: str) -> None:
    """Put an empty module in place of one of LXT's, whose others then import without what it needs."""
    stand_in = ModuleType(f"lxt.efficient.models.{name}")
    setattr(stand_in, modeling, stand_in)
    setattr(stand_in, rules, {})
    sys.modules[stand_in.__name__] = stand_in


leave_out("bert", "modeling_bert", "attnLRP")  # needs find_pruneable_heads_and_indices, which transformers 5 has not
leave_out("vit_torch", "vision_transformer", "cp_LRP")  # needs torchvision

from lxt.efficient import models, monkey_patch, patches  # noqa: E402
from lxt.efficient.rules import identity_rule_implicit_fn  # noqa: E402

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")


def family_of(model: Any) -> str:
    """The file of transformers that defines a model's class."""
    return type(model).__module__.rpartition(".modeling_")[2]


def jacobian(model: Any) -> Tensor:
    """(d, n·d): the decoder's output at the last position by all input embeddings, a backward pass for each row."""
    with Lifted(model.dtype):
        x = embeddings_of(model, prompt_ids(LENGTH)[0])[None].requires_grad_()
        y = model.base_model(inputs_embeds=x, use_cache=False).last_hidden_state[0, -1]
        rows = [torch.autograd.grad(entry, x, retain_graph=True)[0].flatten() for entry in y]
    return torch.stack(rows)


def jacobians(tiny: list[tuple[str, Any]], freeze: str) -> dict[str, Tensor]:
    """J of every tiny model, under the rules in force."""
    return {f"{name} {freeze} {model.dtype}": jacobian(model) for name, model in tiny}


def main(path: str) -> None:
    identity_rule_implicit_fn.forward.__defaults__ = (0.0,)
    every = [(name, make(dtype)) for name, make in DENSE.items() for dtype in (torch.float64, torch.float32)]
    found = {}
    for family in FAMILIES:
        tiny = [(name, model) for name, model in every if family_of(model) == family]
        rules = getattr(models, family).cp_LRP
        monkey_patch(None, rules)
        found |= jacobians(tiny, "gate")
        for module, rule in rules.items():
            if isinstance(rule, partial) and patches.cp_gated_mlp_forward in rule.args:
                module.forward = patches.gated_mlp_forward
                found |= jacobians(tiny, "half")
    save_file(found, path)


if __name__ == "__main__":
    main(sys.argv[1])

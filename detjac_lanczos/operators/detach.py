"""`detach`: from a model and a prompt to the detached network and its Jacobians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from detjac_lanczos.budget import Memory, read_memory
from detjac_lanczos.errors import InputError, ModelError, UnsupportedModelError, shortage_said
from detjac_lanczos.frozen.capture import capture
from detjac_lanczos.frozen.converted import load_converted
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.families import family_of
from detjac_lanczos.frozen.precision import in_own_precision
from detjac_lanczos.frozen.prompt import Embeddings, Integers, read_prompts
from detjac_lanczos.frozen.schedule import make_plan
from detjac_lanczos.frozen.structure import Structure, recognise
from detjac_lanczos.frozen.ways import Rates
from detjac_lanczos.frozen.words import Freeze, require_freeze
from detjac_lanczos.models.adapters import without_adapters
from detjac_lanczos.models.loaded import ModelLike
from detjac_lanczos.operators.network import DetachedNetwork
from detjac_lanczos.operators.part_check import require_affine_parts
from detjac_lanczos.operators.pinned import PinnedNetwork
from detjac_lanczos.operators.self_check import check, self_check


@shortage_said("freeze the network", ModelError)
@torch.inference_mode(False)
@in_own_precision
def detach(
    model: ModelLike,
    prompt: str | Sequence[str] | None = None,
    *,
    freeze: Freeze = "gate",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    chat: bool = False,
    add_special_tokens: bool = True,
    input_ids: Integers | None = None,
    inputs_embeds: Embeddings | None = None,
    attention_mask: Integers | None = None,
    position_ids: Integers | None = None,
    memory: Memory | None = None,
) -> DetachedNetwork:
    """Run a model once on a prompt and freeze its norms, gates and attention weights at the values they take there.

    A model that no family declares is recognised by its structure and runs through its own modules; the network says so
    (``route`` is "autograd" instead of "frozen"), and is checked before it is returned.

    Rotary frequencies that grow with the prompt ("dynamic") are those of this prompt, as in a model that is fresh; one
    that has run a longer prompt keeps the frequencies of that, and its own logits then differ from these.

    Parameters
    ----------
    model : LoadedModel, (model, tokenizer), or anything `load_model` takes
        Never written to; the pass runs on a structural copy that shares every tensor. What is frozen belongs to the
        weights of that pass: after they change in place (training, merged adapters), products are refused, so detach
        again. Where they are replaced instead (also by ``merge_adapter()`` on packed weights), the network keeps those
        of its pass. Writes are noticed by version counters and by one entry a matrix: not seen are those through
        ``.data`` to part of a matrix, to part of weights made in inference mode, and to offloaded weights or packed
        ones of other formats than bitsandbytes' (save by ``replace``, where they are counted and in memory).
    prompt : str or list of str
        A list gives one network whose tokens are addressed as (prompt, token).
    freeze : {"gate", "up", "half"}
        Which factor of a gated MLP act(Wx) ∘ (Zx) is frozen: the activation (the paper's equations), the linear
        factor, or the mean of both maps. Each reproduces y exactly.
    dtype : str or torch.dtype, optional
        Precision of the pass and of every sweep, such as "float64"; by default the model's own. A live model that has
        another stays as it is: **a converted copy of its weights is made**, and kept as long as the network. The copy
        is what `load_model` would give in that dtype (exactly so where the stored weights are the numbers the model
        has), and ``network.loaded`` holds it: give that to further calls. A model that is named is loaded in it.
    device : str or torch.device, optional
        Where the weights are and sweeps run; as `dtype`, by a copy where a live model is elsewhere.
    chat : bool
        Put the prompt through the tokenizer's chat template, as one turn of the user that the model is to answer.
    add_special_tokens : bool
        Whether the tokenizer adds its own, such as one for the beginning; a chat template always brings its own.
    input_ids : integers of shape (positions,) or (prompts, positions), or one list per prompt, optional
        In place of a prompt.
    inputs_embeds : Tensor, shape (positions, d) or (prompts, positions, d), or one tensor per prompt, optional
        In place of a prompt: what the embedding layer would give, of width d; copied, so that no derivative goes
        through. The pass is causal over all of them, as the model's own on embeddings alone is: an image among them is
        not attended to both ways.
    attention_mask : integers, shape of input_ids, optional
        1 for a real token, 0 for padding, on the left or on the right. Padding is taken off: each prompt runs alone,
        with what the padded pass computes for it, and **token indices count its real tokens**, from 0. Refused where
        that pass follows the padding: "longrope" or "dynamic" frequencies in a batch longer than their original length,
        if the tokens of a row end before the batch does; padding on the left in Llama 4, if a row reaches
        ``floor_scale``.
    position_ids : integers of shape (positions,), or the shape of input_ids, optional
        Where tokens stand, padding included. By default 0, 1, 2, ... over the padded row (OPT: over its real tokens),
        as in transformers. They place tokens and part nothing: give packed sequences as prompts of their own.
    memory : int, float or str, optional
        Budget for the frozen factors and the streams of the forward pass that stay in memory, in bytes or as "2GiB"; by
        default everything stays. What does not fit is offloaded (on a CPU: to files in the temporary folder) or made
        again in every sweep, whichever is expected to take less time; see ``network.plan``. The model's weights and the
        rows of a sweep are not counted.

    Returns
    -------
    DetachedNetwork

    Raises
    ------
    InputError
        If the prompt is empty, too long or of the wrong kind, its mask or positions do not fit, a pass would follow the
        padding, embeddings are inside a transform of `torch.func`, or the budget of memory is smaller than the smallest
        plan.
    UnsupportedModelError
        If no family declares the model and its structure is not understood either, a weight is packed in a way that
        cannot be read, a pass would write to a table (``max_norm``), or weights that are packed, offloaded or spread
        over devices would have to be converted.
    ModelError
        If the forward pass is not finite, or memory or file descriptors run out.

    References
    ----------
    J. Golden, "Large Language Models are Locally Linear Mappings", 2025.
    """
    require_freeze(freeze)
    budget = read_memory(memory)
    loaded = load_converted(model, dtype, device)
    whole = without_adapters(loaded.model)
    if not whole.can_generate():
        raise UnsupportedModelError(
            f"{type(whole).__name__} predicts no next token; give a causal language model with its head, such as "
            "LlamaForCausalLM"
        )
    family = family_or_structure(loaded.model)
    prompts = read_prompts(
        loaded,
        prompt,
        chat=chat,
        add_special_tokens=add_special_tokens,
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        positions_from_mask=isinstance(family, Family) and family.positions_from_mask,
    )
    if isinstance(family, Structure):
        if position_ids is None and any(prompt.position_ids is not None for prompt in prompts):
            raise InputError(
                f"where padding puts the tokens of {loaded.name} is not known: no family declares it; give position_ids"
            )
        if budget is not None:
            raise InputError(f"memory is planned for declared families only, and {loaded.name} is none; leave it off")
        pinned = PinnedNetwork.attach(loaded, family, prompts, freeze)
        require_affine_parts(pinned)
        self_check(pinned)
        return pinned
    plan = None
    if budget is not None:
        lengths = [prompt.length for prompt in prompts]
        plan = make_plan(family.shape(loaded.model, freeze), lengths, budget, Rates.of(loaded.device))
    coefficients, streams = capture(loaded.model, family, prompts, freeze, plan)
    network = DetachedNetwork.from_capture(loaded, family, prompts, freeze, coefficients, streams, plan)
    check(network)
    return network


def family_or_structure(model: Any) -> Family | Structure:
    """Return the declaration that serves a model, or its structure where there is none; meta tensors will do.

    Raises
    ------
    UnsupportedModelError
        If there is neither.
    """
    try:
        return family_of(model)
    except UnsupportedModelError as undeclared:
        try:
            return recognise(model)
        except UnsupportedModelError as unknown:
            raise UnsupportedModelError(f"{unknown}; {undeclared}") from None

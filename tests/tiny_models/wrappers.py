"""Models that also see images, around text decoders; what they see with is as small as it can be."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from tests.tiny_models.dense import DENSE, SIZES, WINDOWED
from tests.tiny_models.draw import drawn
from tests.tiny_models.moe import llama4

VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
}
CLIP = VISION | {"model_type": "clip_vision_model", "projection_dim": 8}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}


def around(
    text: Any, kind: str, vision: dict[str, Any], dtype: torch.dtype, *, norm: float = 1.0, **options: Any
) -> Any:
    """Return a model of a kind ("Llava") around a text model's configuration, every parameter drawn."""
    config = getattr(transformers, f"{kind}Config")(text_config=text.config.to_dict(), vision_config=vision, **options)
    return drawn(getattr(transformers, f"{kind}ForConditionalGeneration")(config), dtype, norm=norm)


def llama4_around(dtype: torch.dtype) -> Any:
    """Return a Llama 4 that holds a whole causal language model."""
    widths = {"vision_output_dim": 8, "projector_input_dim": 8, "projector_output_dim": 8}
    return around(llama4(), "Llama4", VISION | widths, dtype)


def paligemma(dtype: torch.dtype) -> Any:
    """Return a model that bends the logits of its head."""
    text = DENSE["Gemma 2"](torch.float32)
    return around(text, "PaliGemma", SIGLIP, dtype, norm=0, hidden_size=24)


def qwen2_5_vl(dtype: torch.dtype) -> Any:
    """Return a model with a decoder of its own, which turns by three positions at once."""
    text = {key: value for key, value in (SIZES | WINDOWED).items() if key != "head_dim"}
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [1, 1, 1]}
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 24}
    config = transformers.Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).to(dtype).eval()


INSIDE = "model.language_model"
PIXTRAL = VISION | {"model_type": "pixtral"}
SQUARE = VISION | {"image_size": [4, 4]}

WRAPPERS: dict[str, tuple[str, str, Callable[[torch.dtype], Any]]] = {
    "Gemma 3": ("Gemma 3", INSIDE, DENSE["Gemma 3 multimodal"]),
    "Mistral 3": ("Mistral", INSIDE, lambda d: around(DENSE["Mistral"](d), "Mistral3", PIXTRAL, d)),
    "Ministral 3": ("Ministral 3", INSIDE, lambda d: around(DENSE["Ministral 3"](d), "Mistral3", PIXTRAL, d)),
    "Llama 4": ("Llama 4 (text)", "language_model.model", llama4_around),
    "LLaVA": ("Llama 2 / 3", INSIDE, lambda d: around(DENSE["Llama biased"](d), "Llava", CLIP, d)),
    "LLaVA Qwen2": ("Qwen2 / Qwen2.5", INSIDE, lambda d: around(DENSE["Qwen2"](d), "Llava", CLIP, d)),
    "InternVL": ("Qwen3", INSIDE, lambda d: around(DENSE["Qwen3"](d), "InternVL", SQUARE, d)),
    "SmolVLM": ("Llama 2 / 3", "model.text_model", lambda d: around(DENSE["Llama"](d), "SmolVLM", VISION, d)),
    "Aya Vision": ("Cohere 2", INSIDE, lambda d: around(DENSE["Cohere 2"](d), "AyaVision", SIGLIP, d)),
}
"""Family of the decoder, where it lies, and the model. Aya Vision leaves out its decoder's scale of logits."""

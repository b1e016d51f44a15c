"""One short declaration per decoder family, found by the class name of the transformers model."""

from operator import attrgetter

from torch import nn

from detjac_lanczos.errors import UnsupportedModelError
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.families.cohere import COHERE, COHERE2
from detjac_lanczos.frozen.families.deepseek import DEEPSEEK_V3
from detjac_lanczos.frozen.families.gemma import GEMMA2, GEMMA3
from detjac_lanczos.frozen.families.gemma1 import GEMMA
from detjac_lanczos.frozen.families.glm import GLM4
from detjac_lanczos.frozen.families.glm_moe import GLM4_MOE
from detjac_lanczos.frozen.families.glm_pre_norm import GLM
from detjac_lanczos.frozen.families.gpt2 import GPT2
from detjac_lanczos.frozen.families.gpt_neox import GPT_NEOX, GPT_NEOX_SEQUENTIAL
from detjac_lanczos.frozen.families.gpt_oss import GPT_OSS
from detjac_lanczos.frozen.families.granite import GRANITE, GRANITE_MOE
from detjac_lanczos.frozen.families.llama import LLAMA
from detjac_lanczos.frozen.families.llama4 import LLAMA4
from detjac_lanczos.frozen.families.llama_like import MINISTRAL, MINISTRAL3, MISTRAL, QWEN2, QWEN3, SEED_OSS, SMOLLM3
from detjac_lanczos.frozen.families.mixture import MIXTRAL, OLMOE, QWEN3_MOE
from detjac_lanczos.frozen.families.olmo import OLMO2, OLMO3
from detjac_lanczos.frozen.families.opt import OPT, OPT_POST_NORM
from detjac_lanczos.frozen.families.phi import PHI3
from detjac_lanczos.frozen.families.phi1 import PHI
from detjac_lanczos.frozen.families.starcoder2 import STARCODER2
from detjac_lanczos.frozen.wrappers import family_inside
from detjac_lanczos.models.adapters import without_adapters

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    MINISTRAL,
    MINISTRAL3,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    MIXTRAL,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI,
    PHI3,
    OLMO2,
    OLMO3,
    OLMOE,
    SMOLLM3,
    SEED_OSS,
    GRANITE,
    GRANITE_MOE,
    COHERE,
    COHERE2,
    GLM,
    GLM4,
    GLM4_MOE,
    GPT_OSS,
    DEEPSEEK_V3,
    LLAMA4,
    STARCODER2,
    GPT2,
    GPT_NEOX,
    GPT_NEOX_SEQUENTIAL,
    OPT,
    OPT_POST_NORM,
)


def family_of(model: nn.Module) -> Family:
    """Return the declaration that serves a model, or that of the text decoder inside it.

    Raises
    ------
    UnsupportedModelError
        If none does; the message lists those that exist, or names the value of the configuration that is declared.
    """
    whole = without_adapters(model)
    for family in FAMILIES:
        if family.serves(type(whole).__name__, whole.config):
            return family
    if inside := family_inside(whole, FAMILIES):
        return inside
    for family in FAMILIES:
        if family.when is not None and type(whole).__name__ in family.classes:
            attribute, value = family.when
            raise UnsupportedModelError(
                f"{type(whole).__name__} with {attribute}={attrgetter(attribute)(whole.config)!r} is not supported; "
                f"{family.name} is declared for {attribute}={value!r}"
            )
    known = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModelError(f"the family of {type(whole).__name__} is not supported; supported: {known}")

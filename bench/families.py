"""Every declared family, measured against its oracles: ``python -m bench.families`` (or ``make families``).

Writes ``bench/results/families.json`` and, from it, ``docs/families.md``.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.exactness import Figures, measure
from bench.family_page import describe, page
from bench.undeclared import survey
from detjac_lanczos.frozen.declare import Family
from detjac_lanczos.frozen.families import FAMILIES, family_of
from detjac_lanczos.frozen.words import ActivatedMLP, Freeze
from tests.tiny_models import DENSE, LENGTH
from tests.tiny_models.dense import SIZES
from tests.tiny_models.moe import MOE

RECORD = Path("bench/results/families.json")
PAGE = Path("docs/families.md")
MODELS = DENSE | MOE
PRECISIONS = (torch.float64, torch.float32)


def main() -> None:
    """Measure, print a line for each family, write both files."""
    torch.set_num_threads(1)
    families = []
    for family in FAMILIES:
        families.append(record(family))
        print("{name}: J in float64 {float64[token_entry]:.1e}, in float32 {float32[entry]:.1e}".format(**families[-1]))
    found = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokens": LENGTH,
        "blocks": SIZES["num_hidden_layers"],
        "families": families,
        "undeclared": survey(),
    }
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found))
    print(f"written: {RECORD}, {PAGE}")


def record(family: Family) -> dict[str, Any]:
    """Return the worst figures of a family over its tiny models and what it can freeze, by precision.

    Its models are also those of larger classes around the same decoder, "Gemma 3 in Gemma3ForConditionalGeneration".
    """
    served = {name: family_of(make(torch.float32)) for name, make in MODELS.items()}
    models = {name: found for name, found in served.items() if found.name.split(" in ")[0] == family.name}
    gated = not any(isinstance(word, ActivatedMLP) for branch in family.branches for word in branch.words)
    choices: tuple[Freeze, ...] = ("gate", "up", "half") if gated else ("gate",)
    worst = {dtype: Figures() for dtype in PRECISIONS}
    offsets = set()
    for name in models:
        for freeze in choices:
            for dtype in PRECISIONS:
                figures = measure(MODELS[name], dtype, freeze)
                worst[dtype] = worst[dtype].worst(figures)
                offsets.add(figures.offset)
    return {
        "name": family.name,
        "classes": list(dict.fromkeys(name for found in (family, *models.values()) for name in found.classes)),
        **describe(family),
        "models": list(models),
        "freeze": list(choices),
        "offset": [min(offsets), max(offsets)],
        **{str(dtype).removeprefix("torch."): vars(figures) for dtype, figures in worst.items()},
    }


if __name__ == "__main__":
    main()

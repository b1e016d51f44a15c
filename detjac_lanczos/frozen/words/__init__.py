"""The words of a family file: which modules hold which weights, and which of their values are frozen.

Each word names a module by its path inside a block, says what to observe there during the one forward pass, and which
primitive maps it becomes.
"""

from detjac_lanczos.frozen.words.attention import Attend
from detjac_lanczos.frozen.words.choices import Either, Plus
from detjac_lanczos.frozen.words.experts import RoutedExperts
from detjac_lanczos.frozen.words.mlp import ActivatedMLP, GatedMLP
from detjac_lanczos.frozen.words.norms import LayerNorm, RMSNorm
from detjac_lanczos.frozen.words.parts import latent, stacked_values, values_by_head, values_of_latent
from detjac_lanczos.frozen.words.projections import Constant, Project, Scale, Softcap
from detjac_lanczos.frozen.words.word import (
    Coefficients,
    Freeze,
    Word,
    as_written,
    require_all,
    require_freeze,
)

__all__ = [
    "ActivatedMLP",
    "Attend",
    "Coefficients",
    "Constant",
    "Either",
    "Freeze",
    "GatedMLP",
    "LayerNorm",
    "Plus",
    "Project",
    "RMSNorm",
    "RoutedExperts",
    "Scale",
    "Softcap",
    "Word",
    "as_written",
    "latent",
    "require_all",
    "require_freeze",
    "stacked_values",
    "values_by_head",
    "values_of_latent",
]

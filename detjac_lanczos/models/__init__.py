"""How a name, a folder, a GGUF file or a live model becomes (model, tokenizer), and what a weight is."""

from detjac_lanczos.models.catalogue import ModelInfo, list_models
from detjac_lanczos.models.load import load_model
from detjac_lanczos.models.loaded import LoadedModel

__all__ = ["LoadedModel", "ModelInfo", "list_models", "load_model"]

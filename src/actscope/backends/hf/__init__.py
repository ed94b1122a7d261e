"""The Hugging Face backend."""

from actscope.backends.hf.answers import Generation
from actscope.backends.hf.load import HFBackend, load_model, wrap_model
from actscope.backends.hf.model import HFModel

__all__ = ["BACKEND", "Generation", "HFBackend", "HFModel", "load_model", "wrap_model"]

BACKEND = HFBackend

"""Actscope captures what a language model computes, keeps it safe, and lets people study it.

The names below are the whole public door. They are imported when first used, so that
``import actscope`` is instant and never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actscope.backends.hf import HFBackend as ModelBackend
    from actscope.backends.hf import HFModel, load_model, wrap_model
    from actscope.capture import ActivationExtractor, DatasetRunner
    from actscope.core.activations import ActivationBatch, Batch, TokenRow
    from actscope.core.errors import ActscopeError
    from actscope.core.protocols import (
        BackendModel,
        ExtractionStrategy,
        LayerSelector,
        RunWriter,
        Storage,
    )
    from actscope.core.sites import Site
    from actscope.core.text import Example, Message, Span
    from actscope.interventions import Ablate, Add, Clamp, Patch
    from actscope.stores import HDF5Storage, NPZStorage, Run, ShardStorage, open_run
    from actscope.strategies import (
        CLSStrategy,
        CustomStrategy,
        ExpWeightedStrategy,
        FirstTokenStrategy,
        LastTokenStrategy,
        MaxStrategy,
        MeanStrategy,
        NoneStrategy,
        PoolerStrategy,
    )

__version__ = "0.1.0"

_HOMES = {
    "actscope.backends.hf": ("HFModel", "load_model", "wrap_model"),
    "actscope.capture": ("ActivationExtractor", "DatasetRunner"),
    "actscope.core.activations": ("ActivationBatch", "Batch", "TokenRow"),
    "actscope.core.errors": ("ActscopeError",),
    "actscope.core.protocols": (
        "BackendModel",
        "ExtractionStrategy",
        "LayerSelector",
        "RunWriter",
        "Storage",
    ),
    "actscope.core.sites": ("Site",),
    "actscope.core.text": ("Example", "Message", "Span"),
    "actscope.interventions": ("Ablate", "Add", "Clamp", "Patch"),
    "actscope.stores": ("HDF5Storage", "NPZStorage", "Run", "ShardStorage", "open_run"),
    "actscope.strategies": (
        "CLSStrategy",
        "CustomStrategy",
        "ExpWeightedStrategy",
        "FirstTokenStrategy",
        "LastTokenStrategy",
        "MaxStrategy",
        "MeanStrategy",
        "NoneStrategy",
        "PoolerStrategy",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Ablate",
    "ActivationBatch",
    "ActivationExtractor",
    "ActscopeError",
    "Add",
    "BackendModel",
    "Batch",
    "CLSStrategy",
    "Clamp",
    "CustomStrategy",
    "DatasetRunner",
    "Example",
    "ExpWeightedStrategy",
    "ExtractionStrategy",
    "FirstTokenStrategy",
    "HDF5Storage",
    "HFModel",
    "LastTokenStrategy",
    "LayerSelector",
    "MaxStrategy",
    "MeanStrategy",
    "Message",
    "ModelBackend",
    "NPZStorage",
    "NoneStrategy",
    "Patch",
    "PoolerStrategy",
    "Run",
    "RunWriter",
    "ShardStorage",
    "Site",
    "Span",
    "Storage",
    "TokenRow",
    "__version__",
    "load_model",
    "open_run",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    if name == "ModelBackend":  # the one backend whose class carries the seam's name
        return importlib.import_module("actscope.backends.hf").HFBackend
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'actscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

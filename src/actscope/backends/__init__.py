"""Engines that run a model and hand back activations; one package per framework.

``endpoint`` is none of them: a server gives text, which a local model then replays.
"""

from __future__ import annotations

from actscope.core.protocols import ModelBackend
from actscope.core.registry import Registry

__all__ = ["BACKENDS"]

BACKENDS: Registry[type[ModelBackend]] = Registry(
    "actscope.backends", "BACKEND", "backend", beside={"endpoint"}
)

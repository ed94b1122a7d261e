"""Work: plan a dataset into units, run each, write it safely, resume what is missing.

The names load when first used, so that importing this room costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actscope.capture.dry_run import DryRun
    from actscope.capture.extractor import ActivationExtractor
    from actscope.capture.interrupt import CaptureInterrupted
    from actscope.capture.options import CaptureOptions
    from actscope.capture.progress import Progress
    from actscope.capture.runner import DatasetRunner, RunResult

_HOMES = {
    "ActivationExtractor": "extractor",
    "CaptureInterrupted": "interrupt",
    "CaptureOptions": "options",
    "DatasetRunner": "runner",
    "DryRun": "dry_run",
    "Progress": "progress",
    "RunResult": "runner",
}

__all__ = [
    "ActivationExtractor",
    "CaptureInterrupted",
    "CaptureOptions",
    "DatasetRunner",
    "DryRun",
    "Progress",
    "RunResult",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"actscope.capture.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'actscope.capture' has no attribute {name!r}")

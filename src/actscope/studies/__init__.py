"""Whole experiments. One folder a study: its parameters, run, result and report.

A folder here adds a study; it defines ``STUDY``.
"""

from __future__ import annotations

from actscope.core.protocols import Study
from actscope.core.registry import Registry

__all__ = ["STUDIES"]

STUDIES: Registry[Study] = Registry("actscope.studies", "STUDY", "study")

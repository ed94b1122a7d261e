"""Facts about model families that verification cannot find out by itself: data, never code.

A family file exists only where the resolver's sums do not close without a hint. Hints are tried and
checked against the model's own numbers; a wrong hint makes a site unavailable, never wrong.
"""

from __future__ import annotations

from actscope.core.registry import Registry
from actscope.families._facts import Family

__all__ = ["FAMILIES", "Family", "facts_for"]

FAMILIES: Registry[Family] = Registry("actscope.families", "FAMILY", "model family")


def facts_for(model_type: str) -> Family:
    """The facts of a configuration's ``model_type``; none are known for most types."""
    name = model_type.replace("-", "_")
    return FAMILIES.get(name) if name in FAMILIES.names() else Family()

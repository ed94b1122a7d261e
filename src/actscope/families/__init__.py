"""Facts about model families that verification cannot find out by itself: data, never code.

The resolver finds constants by value and takes the exact number from the configuration. A family
file exists only where a type's code holds a constant that its configuration does not, which matters
in half precision and for soft-caps; no type of transformers 5.23 needs one. What a file says is
tried and checked against the model's own numbers; a wrong constant cannot make a site wrong.
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

"""Which tokens of an example are kept."""

from actscope.selectors.span import select

__all__ = ["select"]

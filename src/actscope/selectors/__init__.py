"""Which tokens of an example are kept, and which are changed."""

from actscope.selectors.span import select
from actscope.selectors.tokens import chosen_tokens, reaches_new_tokens

__all__ = ["chosen_tokens", "reaches_new_tokens", "select"]

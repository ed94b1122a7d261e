"""Any iterable of prompts as an indexed, fingerprinted dataset."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from actscope.core.protocols import Source
from actscope.core.text import as_examples
from actscope.sources import InMemory, open_source

__all__ = ["as_dataset"]


def as_dataset(dataset: object) -> Source:
    """A source as it is, or one made of what was given.

    Args:
        dataset: A source, a ``Path`` to a file or folder of prompts, or an iterable of texts, token
            id lists, dictionaries or examples. A plain string is one text, never a path.
    """
    if isinstance(dataset, Path):
        return open_source(dataset)
    if all(callable(getattr(dataset, name, None)) for name in ("examples", "fingerprint")):
        return cast("Source", dataset)
    return InMemory(as_examples(dataset))

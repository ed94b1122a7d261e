"""Examples that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actscope.core.text import Example
from actscope.sources._scan import Scan

__all__ = ["InMemory"]


class InMemory:
    """A source that holds its examples.

    Args:
        examples: In order.
        name: What to call the dataset in an error, such as its path.

    Raises:
        SourceError: two have the same id, or metadata is not JSON.
    """

    def __init__(self, examples: Sequence[Example], name: str = "") -> None:
        self._examples = list(examples)
        scan = Scan(name)
        for index, example in enumerate(self._examples):
            scan.add(example, f"row {index}")
        self._fingerprint = scan.finish(lambda i: self._examples[i].id)

    def __len__(self) -> int:
        return len(self._examples)

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """The examples of a range, in order."""
        yield from self._examples[start:stop]

    def fingerprint(self) -> str:
        """Hex digest of every id, prompt and its metadata, in order."""
        return self._fingerprint

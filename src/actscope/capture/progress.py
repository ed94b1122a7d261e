"""What a capture tells whoever watches it; the capture itself prints nothing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Callbacks of a run, always from the thread that runs it."""

    def started(self, total: int, done: int) -> None:
        """The range holds ``total`` examples, of which ``done`` are on disk already."""
        ...

    def advanced(self, examples: int, tokens: int) -> None:
        """So many more examples and tokens went through the model."""
        ...

    def notice(self, text: str) -> None:
        """One sentence the user should see."""
        ...


class Silent:
    """Tells nobody."""

    def started(self, total: int, done: int) -> None:
        """Nothing."""

    def advanced(self, examples: int, tokens: int) -> None:
        """Nothing."""

    def notice(self, text: str) -> None:
        """Nothing."""

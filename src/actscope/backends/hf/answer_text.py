"""What a growing answer says, piece by piece, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actscope.backends.hf.unfolding import Unfolding

__all__ = ["AnswerText", "text_of"]


class AnswerText:
    """The text of one answer while its tokens arrive.

    Stop strings are looked for in the text as it was generated, special tokens included, whatever
    way the tokenizer splits them. What may yet become part of one is held back, so that pieces that
    were handed out are never taken back.

    Attributes:
        text: What was handed out so far; once the last token is in, the whole text.
        stopped: Whether a stop string has been completed; the text ends before it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        stop: Texts that end the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._unfolding = Unfolding(tokenizer)
        self._stop = tuple(stop)
        self._longest = max((len(s) for s in self._stop), default=0)
        self._said = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int, *, last: bool) -> str:
        """The next token.

        Args:
            token: Its id.
            last: Whether it is known to be the last one: nothing is held back then.

        Returns:
            The text that is now certain; pieces join to the text.
        """
        known = len(self._unfolding.text)
        self._unfolding.add(token)
        end = self._first_stop(known)
        if end is not None:
            self.stopped = True
        elif last:
            self._unfolding.finish()
            end = len(self._unfolding.text)
        else:
            end = len(self._unfolding.text) - self._held()
        piece = self._shown(self._said, end)
        self._said = end
        self.text += piece
        return piece

    def _first_stop(self, known: int) -> int | None:
        """Where the first stop string begins that ends after what was known."""
        text = self._unfolding.text
        starts = [text.find(s, max(known - len(s) + 1, 0)) for s in self._stop]
        return min((start for start in starts if start >= 0), default=None)

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        text = self._unfolding.text
        for n in range(min(self._longest - 1, len(text) - self._said), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stop):
                return n
        return 0

    def _shown(self, start: int, end: int) -> str:
        """That part of the text, special tokens left out."""
        unfolding = self._unfolding
        return "".join(
            c
            for c, shown in zip(unfolding.text[start:end], unfolding.shown[start:end], strict=True)
            if shown
        )


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a whole answer; the same as handing its tokens to ``AnswerText``."""
    whole = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if "\ufffd" not in whole:
        return whole
    answer = AnswerText(tokenizer)
    for place, token in enumerate(ids):
        answer.add(token, last=place == len(ids) - 1)
    return answer.text

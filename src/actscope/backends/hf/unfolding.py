"""Text of tokens that arrive one by one: each token's characters, whole characters only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Unfolding", "are_special", "offsets_of_ids"]

_BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no whole character, or not yet."""


def are_special(tokenizer: Any, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which tokens the tokenizer calls special: those that ``skip_special_tokens`` skips.

    Besides the named ones (BOS, EOS, ...) these are added tokens marked so, as the template marks
    of many chat models are.
    """
    marks = sorted(_special_ids(tokenizer))
    return np.isin(np.asarray(ids, dtype=np.int64), np.array(marks, dtype=np.int64))


def _special_ids(tokenizer: Any) -> frozenset[int]:
    named = tuple(int(i) for i in getattr(tokenizer, "all_special_ids", None) or [])
    if not hasattr(tokenizer, "added_tokens_decoder"):
        return frozenset(named)
    return _all_special_ids(tokenizer, len(tokenizer), named)


@lru_cache(maxsize=16)  # listing the added tokens takes longer than encoding a text
def _all_special_ids(tokenizer: Any, size: int, named: tuple[int, ...]) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    return frozenset(named) | {int(i) for i, token in added.items() if token.special}


class Unfolding:
    """The text of a growing row of tokens.

    A character of several bytes may be spread over several tokens; it appears when it is whole.
    Special tokens stand in the text as the tokenizer spells them, and are marked as hidden: the
    text without them is what ``decode(ids, skip_special_tokens=True)`` gives. (Bytes that make no
    character at all are the exception: some decoders take back what stood before them.)

    Each step decodes the last few tokens only, twice from the same place, so that what a decoder
    does at the beginning of a text (such as dropping a space) cancels out.

    Attributes:
        text: Every character that is settled.
        shown: For each of them, whether it is no part of a special token.
        offsets: The characters of each token in ``text``.

    Args:
        tokenizer: A Hugging Face tokenizer.
        before: Tokens that stand before the first one; their text is no part of ``text``.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._marks = _special_ids(tokenizer)
        self.text = ""
        self.shown: list[bool] = []
        self.offsets: list[tuple[int, int]] = []
        self._ids = [int(i) for i in before if int(i) not in self._marks]
        self._from = 0  # where the decoded stretch begins
        self._to = len(self._ids)  # its tokens up to here are settled
        self._base = len(self._decoded(self._ids))
        self._settled = 0  # characters after those that are settled too
        self._waiting: list[int] = []  # tokens whose last character is not whole

    def add(self, token: int) -> str:
        """The next token; returns the characters that it settled and that are shown."""
        start = len(self.text)
        self.offsets.append((start, start))
        if token in self._marks:
            self._write(self._spelled(token), shown=False)
            self.offsets[-1] = (start, len(self.text))
            return ""
        self._ids.append(token)
        whole = self._decoded(self._ids[self._from :])[self._base :]
        settled = whole.rstrip(_BROKEN)
        new = settled[self._settled :]
        self._settle(new)
        self._settled += len(new)
        self.offsets[-1] = (start, len(self.text))
        if len(settled) < len(whole):
            self._waiting.append(len(self.offsets) - 1)
        else:
            self._move_on()
        return new

    def finish(self) -> str:
        """No more tokens: what is not whole will never be; returns it as the decoder writes it."""
        whole = self._decoded(self._ids[self._from :])[self._base :]
        rest = whole[self._settled :]
        self._settle(rest)
        self._move_on()
        return rest

    def _settle(self, new: str) -> None:
        if not new:
            return
        place = len(self.text)
        for token in self._waiting:  # the first new character is the one they waited for
            first, last = self.offsets[token]
            self.offsets[token] = (first if last > first else place, place + 1)
        self._waiting.clear()
        self._write(new, shown=True)

    def _write(self, text: str, *, shown: bool) -> None:
        self.text += text
        self.shown += [shown] * len(text)

    def _move_on(self) -> None:
        self._from, self._to = self._to, len(self._ids)
        self._base = len(self._decoded(self._ids[self._from : self._to]))
        self._settled = 0

    def _decoded(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _spelled(self, token: int) -> str:
        return self._tokenizer.decode([token], clean_up_tokenization_spaces=False)


def offsets_of_ids(
    tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()
) -> tuple[str, npt.NDArray[np.int64]]:
    """The text of some tokens, special ones included, and the characters of each, ``[n, 2]``."""
    unfolding = Unfolding(tokenizer, before)
    for token in ids:
        unfolding.add(int(token))
    unfolding.finish()
    return unfolding.text, np.array(unfolding.offsets, dtype=np.int64).reshape(-1, 2)

"""What a growing answer says, piece by piece: its reasoning, its answer, and where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.backends.hf.unfolding import Unfolding
from actscope.core.text import RESPONSE, THINK

__all__ = ["CLOSE", "OPEN", "AnswerText", "Said", "opens_reasoning", "said_by"]

OPEN, CLOSE = "<think>", "</think>"
_TAIL = 16
"""So many tokens at the end of a prompt show whether it ends by opening the reasoning."""


@dataclass(frozen=True)
class Said:
    """What was said, answer and reasoning apart."""

    text: str = ""
    thought: str = ""


class AnswerText:
    """The text of one answer while its tokens arrive.

    Whatever stands between ``<think>`` and ``</think>`` is reasoning; the tags are neither. Tags
    and stop strings are looked for in the text as it was generated, special tokens included,
    whatever way the tokenizer splits them. What may yet become part of one is held back, so that
    pieces that were handed out are never taken back.

    Attributes:
        stopped: Whether a stop string has been completed; the text ends before it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        stop: Texts that end the answer.
        thinking: Whether the prompt has opened the reasoning already.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, thinking: bool = False) -> None:
        self._unfolding = Unfolding(tokenizer)
        self._stop = tuple(stop)
        self._thinking = thinking
        self._thoughts: list[list[int]] = [[0, 0]] if thinking else []
        self._said = 0  # characters that were handed out, or are tags
        self._texts: list[str] = []
        self._reasons: list[str] = []
        self.stopped = False

    def add(self, token: int, *, last: bool) -> Said:
        """The next token.

        Args:
            token: Its id.
            last: Whether it is known to be the last one: nothing is held back then.

        Returns:
            What is now certain; pieces join to the whole.
        """
        known = len(self._unfolding.text)
        self._unfolding.add(token)
        cut = self._first_stop(known)
        if cut is not None:
            self.stopped = True
        elif last:
            self._unfolding.finish()
            cut = len(self._unfolding.text)
        piece = self._up_to(cut)
        self._texts.append(piece.text)
        self._reasons.append(piece.thought)
        return piece

    @property
    def whole(self) -> Said:
        """All pieces joined."""
        return Said("".join(self._texts), "".join(self._reasons))

    def phases(self) -> npt.NDArray[np.uint8]:
        """``[n]``: THINK for tokens that spell a character of the reasoning or of its tags."""
        offsets = np.array(self._unfolding.offsets, dtype=np.int64).reshape(-1, 2)
        first, last = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
        thinks = np.zeros(len(offsets), dtype=np.bool_)
        endless = len(self._unfolding.text) + 1
        for place, (start, end) in enumerate(self._thoughts):
            open_still = self._thinking and place == len(self._thoughts) - 1
            thinks |= (first < (endless if open_still else end)) & (last > start)
        return np.where(thinks, THINK, RESPONSE).astype(np.uint8)

    def _up_to(self, cut: int | None) -> Said:
        """Hand out what is certain, or all before the cut."""
        text, parts = self._unfolding.text, {False: "", True: ""}
        while True:
            limit = len(text) - self._held() if cut is None else cut
            tag = CLOSE if self._thinking else OPEN
            at = text.find(tag, self._said, cut)
            parts[self._thinking] += self._shown(self._said, limit if at < 0 else min(at, limit))
            if at < 0 or at + len(tag) > limit:  # a tag may be there and yet be part of a stop
                self._said = max(self._said, limit if at < 0 else min(at, limit))
                return Said(parts[False], parts[True])
            self._said = at + len(tag)
            if self._thinking:
                self._thoughts[-1][1] = self._said
            else:
                self._thoughts.append([at, self._said])
            self._thinking = not self._thinking

    def _first_stop(self, known: int) -> int | None:
        """Where the first stop string begins that ends after what was known."""
        text = self._unfolding.text
        starts = [text.find(s, max(known - len(s) + 1, 0)) for s in self._stop]
        return min((start for start in starts if start >= 0), default=None)

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string or of the next tag."""
        text, fresh = self._unfolding.text, len(self._unfolding.text) - self._said
        tag = CLOSE if self._thinking else OPEN
        begun = [_begun(text[self._said :], tag), *(_begun(text, stop) for stop in self._stop)]
        return min(max(begun), fresh)

    def _shown(self, start: int, end: int) -> str:
        """That part of the text, special tokens left out."""
        unfolding = self._unfolding
        pairs = zip(unfolding.text[start:end], unfolding.shown[start:end], strict=True)
        return "".join(c for c, shown in pairs if shown)


def _begun(text: str, mark: str) -> int:
    """How many characters at the end of a text are the beginning of a mark that may follow."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


def opens_reasoning(tokenizer: Any, prompt: npt.NDArray[np.int64]) -> bool:
    """Whether a prompt ends with ``<think>``, as the templates of some reasoning models do."""
    if tokenizer is None:
        return False
    tail = [int(i) for i in prompt[-_TAIL:]]
    return str(tokenizer.decode(tail)).rstrip().endswith(OPEN)


def said_by(
    tokenizer: Any, ids: Sequence[int], *, thinking: bool
) -> tuple[Said, npt.NDArray[np.uint8]]:
    """What a whole answer says, and what each token is part of; as ``AnswerText`` has it."""
    if not thinking and OPEN not in str(tokenizer.decode(ids)):
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if "\ufffd" not in whole:
            return Said(str(whole)), np.full(len(ids), RESPONSE, np.uint8)
    answer = AnswerText(tokenizer, thinking=thinking)
    for place, token in enumerate(ids):
        answer.add(int(token), last=place == len(ids) - 1)
    return answer.whole, answer.phases()

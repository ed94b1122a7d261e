"""The three passes, the letters they are answered with, and what a letter of confidence means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actscope.core.errors import BadInputError, UnknownNameError

__all__ = ["CONFIDENCE_BINS", "MIDPOINTS", "PASSES", "Pass", "letter_tokens", "passes_named"]

CONFIDENCE_BINS = ("<5", "5-10", "10-20", "20-40", "40-60", "60-80", "80-90", ">90")
"""What the letters A to H stand for, in percent."""
MIDPOINTS = (2.5, 7.5, 15.0, 30.0, 50.0, 70.0, 85.0, 95.0)
"""Of the bins, in percent."""


@dataclass(frozen=True)
class Pass:
    """One way to ask about a question.

    Attributes:
        name: ``mcq``, ``self_confidence`` or ``other_confidence``: the rows' ``prompt_type``.
        folder: Where its rows lie.
        word: What ``--which-questions`` calls it.
        letters: What it is answered with.
    """

    name: str
    folder: str
    word: str
    letters: str

    @property
    def states_confidence(self) -> bool:
        """Whether its letters are bins of confidence."""
        return self.name != "mcq"


PASSES = (
    Pass("mcq", "mcq", "mcq", "ABCD"),
    Pass("self_confidence", "self_conf", "self", "ABCDEFGH"),
    Pass("other_confidence", "other_conf", "other", "ABCDEFGH"),
)


def passes_named(words: str | Sequence[str]) -> tuple[Pass, ...]:
    """Passes by their words, names or folders, in their own order.

    Raises:
        UnknownNameError: one is none of them.
        BadInputError: none is named.
    """
    listed = words.split(",") if isinstance(words, str) else list(words)
    wanted = [word.strip().replace("-", "_") for word in listed if word.strip()]
    for word in wanted:
        if not any(word in (p.word, p.name, p.folder) for p in PASSES):
            raise UnknownNameError("pass", word, [p.word for p in PASSES])
    found = tuple(p for p in PASSES if any(w in (p.word, p.name, p.folder) for w in wanted))
    if not found:
        raise BadInputError("no pass was asked for", expected="some of mcq, self, other")
    return found


def letter_tokens(tokenizer: Any, letters: str) -> list[list[int]]:
    """Token ids that say each letter: single-token encodings of ``X``, alone and after a space.

    Raises:
        BadInputError: there is no tokenizer, or a letter is no single token either way.
    """
    if tokenizer is None:
        raise BadInputError(
            "letters are read from a model with a tokenizer",
            got="a model without one",
            next_step="save a tokenizer in the model's folder",
        )
    found = {letter: _single_tokens(tokenizer, letter) for letter in letters}
    missing = [letter for letter, tokens in found.items() if not tokens]
    if missing:
        ways = tokenizer.encode(missing[0], add_special_tokens=False)
        raise BadInputError(
            f"the letters {', '.join(missing)} are no single tokens of this tokenizer",
            got=f"{missing[0]!r} is {len(ways)} tokens",
            expected=f"one token for each of {letters}, alone or after a space",
            next_step="use a model whose tokenizer keeps capital letters whole",
        )
    shared = {t for tokens in found.values() for t in tokens}
    if len(shared) < sum(map(len, found.values())):
        raise BadInputError(
            "the tokenizer writes several letters with one token",
            got=found,
            expected=f"different tokens for {letters}",
        )
    return list(found.values())


def _single_tokens(tokenizer: Any, letter: str) -> list[int]:
    """The unknown token is no encoding of a letter."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    ways = [tokenizer.encode(x, add_special_tokens=False) for x in (letter, f" {letter}")]
    return list(dict.fromkeys(int(w[0]) for w in ways if len(w) == 1 and w[0] != unknown))

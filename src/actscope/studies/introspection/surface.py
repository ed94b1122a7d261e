"""What can be said of a question without a model: length, kind, words, rarity of its tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import log
from typing import Any

from actscope.core.errors import BadInputError

__all__ = ["NUMERIC", "QUESTION_TYPES", "SurfaceFeatures"]

QUESTION_TYPES = ("what", "where", "when", "who", "how", "why", "which", "other")
NUMERIC = (
    "char_length", "token_length", "has_negation", "has_ambiguity", "token_rarity_mean",
    "token_rarity_max", "token_logfreq_mean", "token_logfreq_min",
)  # fmt: skip
_NEGATIONS = {
    "no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without",
    "cannot", "except",
}  # fmt: skip
_AMBIGUOUS = {
    "possibly", "might", "may", "maybe", "perhaps", "could", "probably", "likely", "unlikely",
    "sometimes", "often", "usually", "approximately", "roughly", "about", "seems", "appears",
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class SurfaceFeatures:
    """Surface features of the questions of one dataset.

    Args:
        tokenizer: Of the model.
        questions: Every question of the dataset, captured or not: their tokens are counted, so
            that a frequency does not depend on the range.
    """

    def __init__(self, tokenizer: Any, questions: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._counts = Counter(t for text in questions for t in self._ids(text))
        self._total = sum(self._counts.values())

    def of(self, question: str) -> dict[str, Any]:
        """The features of one question, by field.

        ``token_rarity_*`` are token ids, a proxy that grows with rarity for tokenizers sorted by
        frequency; ``token_logfreq_*`` are natural logs of the share of the dataset's own question
        tokens.

        Raises:
            BadInputError: the question has no token.
        """
        ids = self._ids(question)
        if not ids:
            raise BadInputError("a question has no token", got=repr(question))
        shares = [log(max(self._counts[t], 1) / max(self._total, 1)) for t in ids]
        words = [word.lower().replace("’", "'") for word in _WORD.findall(question)]
        return {
            "char_length": len(question),
            "token_length": len(ids),
            "question_type": next((w for w in words if w in QUESTION_TYPES[:-1]), "other"),
            "has_negation": any(w in _NEGATIONS or w.endswith("n't") for w in words),
            "has_ambiguity": any(w in _AMBIGUOUS for w in words),
            "token_rarity_mean": sum(ids) / len(ids),
            "token_rarity_max": max(ids),
            "token_logfreq_mean": sum(shares) / len(shares),
            "token_logfreq_min": min(shares),
        }

    def _ids(self, text: str) -> list[int]:
        return [int(t) for t in self._tokenizer.encode(text, add_special_tokens=False)]

"""Which characters each token spells, and whose words they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import Array

__all__ = ["ROLES", "Speller", "Spelling"]

ROLES = ("", "system", "user", "assistant")
"""Whose content a token is, by number; 0 is nobody's, such as the marks of a chat template."""


@dataclass(frozen=True)
class Spelling:
    """What the tokens of one example spell.

    Attributes:
        text: The text that was tokenised, template marks included; then what was generated.
        offsets: ``[L, 2]`` int64: token i spells ``text[start:end]``. A token that spells nothing
            has equal bounds.
        roles: ``[L]`` uint8, an index of ``ROLES``.
        no_roles: Why nobody knows the roles; empty where they are known.
    """

    text: str
    offsets: npt.NDArray[np.int64]
    roles: npt.NDArray[np.uint8]
    no_roles: str = ""

    def take(self, keep: Array) -> Spelling:
        """The same of some of the tokens; the text stays whole."""
        return replace(self, offsets=self.offsets[keep], roles=self.roles[keep])

    def extended(self, text: str, offsets: Array, roles: Array) -> Spelling:
        """With tokens that follow.

        Args:
            text: What they spell.
            offsets: ``[n, 2]`` into that text.
            roles: ``[n]``.
        """
        shifted = np.asarray(offsets, dtype=np.int64).reshape(-1, 2) + len(self.text)
        return Spelling(
            self.text + text,
            np.concatenate([self.offsets, shifted]),
            np.concatenate([self.roles, roles]).astype(np.uint8),
            self.no_roles,
        )

    def overlapping(self, start: int, end: int) -> npt.NDArray[np.bool_]:
        """``[L]``, true where a token spells a character of ``text[start:end]``."""
        first, last = self.offsets[:, 0], self.offsets[:, 1]
        return np.maximum(first, start) < np.minimum(last, end)


Speller = Callable[[], Spelling]
"""Works the spelling out when somebody asks for it: most captures never do."""

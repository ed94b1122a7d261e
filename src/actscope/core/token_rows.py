"""Tokens that go through a model: of one example, and of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.spelling import Speller
from actscope.core.text import PROMPT

__all__ = ["Batch", "TokenRow"]


@dataclass(frozen=True)
class TokenRow:
    """The tokens of one example, unpadded.

    Attributes:
        id: The example's id.
        token_ids: ``[L]`` int64.
        phase: ``[L]`` uint8, an index of ``PHASE_NAMES``: PROMPT, RESPONSE or THINK.
        special: ``[L]`` bool, true where the tokenizer calls the token special.
        spelling: What the tokens spell, worked out when asked for; None where only ids are known.
        noise: What its sampling is seeded by, besides the seed; its id where this is empty.
        encoder_ids: ``[L']`` int64, what the encoder of an encoder-decoder reads, where the tokens
            are the decoder's; None for every other model.
    """

    id: str
    token_ids: npt.NDArray[np.int64]
    phase: npt.NDArray[np.uint8]
    special: npt.NDArray[np.bool_]
    spelling: Speller | None = None
    noise: str = ""
    encoder_ids: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is read for it: what a batch is planned by."""
        return max(len(self), 0 if self.encoder_ids is None else len(self.encoder_ids))

    def samples(self, n: int) -> list[TokenRow]:
        """The prompt for n answers: itself, or ``ID#0`` ... with noise of their own.

        The first has the noise of the prompt alone.
        """
        if n == 1:
            return [self]
        noises = [self.id, *(f"{self.id}\0{k}" for k in range(1, n))]
        return [replace(self, id=f"{self.id}#{k}", noise=noise) for k, noise in enumerate(noises)]

    def take(self, keep: npt.NDArray[np.bool_]) -> TokenRow:
        """Some of the tokens.

        Args:
            keep: ``[L]``, true on those.
        """
        spelling = self.spelling
        return replace(
            self,
            token_ids=self.token_ids[keep],
            phase=self.phase[keep],
            special=self.special[keep],
            spelling=None if spelling is None else cache(lambda: spelling().take(keep)),
        )

    @classmethod
    def from_ids(cls, identity: str, token_ids: Sequence[int] | Array) -> TokenRow:
        """A prompt of ready token ids, none of them special."""
        ids = np.asarray(token_ids, dtype=np.int64)
        return cls(identity, ids, np.full(len(ids), PROMPT, np.uint8), np.zeros(len(ids), np.bool_))


@dataclass(frozen=True)
class Batch:
    """Token rows that go through the model together.

    Attributes:
        rows: The examples.
        padding_side: Where the shorter ones are filled up; results do not depend on it beyond
            float tolerance.
        shared: Rows whose first so many tokens are equal compute them once: a number for all rows
            or one for each; 0 shares nothing.
        pass_tokens: What a forward pass costs beside its tokens, in tokens: ends of rows that share
            a beginning are cut into passes by it; 0 makes one pass of them.
    """

    rows: tuple[TokenRow, ...]
    padding_side: str = "right"
    shared: int | tuple[int, ...] = 0
    pass_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.rows:
            raise BadInputError("a batch needs at least one example")
        if self.padding_side not in ("left", "right"):
            raise UnknownNameError("padding side", self.padding_side, ["left", "right"])
        for row in self.rows:
            if not len(row):
                raise BadInputError(f"example {row.id!r} has no tokens")
        if self.shared:
            self._check_beginnings()

    def _check_beginnings(self) -> None:
        if len(self.beginnings) != len(self.rows):
            raise BadInputError(
                "beginnings are shared by all rows or none",
                got=f"{len(self.beginnings)} lengths for {len(self.rows)} rows",
            )
        for row, shared in zip(self.rows, self.beginnings, strict=True):
            if not 0 < shared < len(row) or self.padding_side == "left":
                what = f"example {row.id!r} cannot share its first {shared} tokens"
                raise BadInputError(what, expected="one of its own, and padding on the right")

    @property
    def beginnings(self) -> tuple[int, ...]:
        """How many tokens each row may share with rows that begin alike."""
        if isinstance(self.shared, tuple):
            return self.shared
        return (self.shared,) * len(self.rows)

    @classmethod
    def from_ids(cls, token_ids: Sequence[Sequence[int]], padding_side: str = "right") -> Batch:
        """A batch of ready token ids; the examples are called by their position."""
        rows = tuple(TokenRow.from_ids(str(i), ids) for i, ids in enumerate(token_ids))
        return cls(rows, padding_side)

    def padded(self, pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Token ids ``[n, L]`` and mask ``[n, L]`` (true on real tokens)."""
        return _padded([row.token_ids for row in self.rows], pad_id, self.padding_side)

    def encoder_padded(
        self, pad_id: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
        """The same of what the encoder reads, padded on the right; None where there is none.

        Raises:
            BadInputError: some rows have a text for the encoder and some have none.
        """
        texts = [row.encoder_ids for row in self.rows if row.encoder_ids is not None]
        if texts and len(texts) < len(self.rows):
            without = next(row.id for row in self.rows if row.encoder_ids is None)
            raise BadInputError(f"example {without!r} has no text for the encoder; others have")
        return _padded(texts, pad_id, "right") if texts else None


def _padded(
    rows: Sequence[npt.NDArray[np.int64]], pad_id: int, side: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    ids = np.full((len(rows), max(len(row) for row in rows)), pad_id, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for index, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(-len(row), None)
        ids[index, where] = row
        mask[index, where] = True
    return ids, mask

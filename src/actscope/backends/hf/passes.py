"""Which token is where in a forward pass: in a batch, at prefill and at every decode step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from actscope.core.activations import Batch, TokenRow
from actscope.core.errors import BadInputError, RunError
from actscope.core.protocols import TokenPlaces
from actscope.core.sites import Site
from actscope.core.text import PROMPT, Span
from actscope.selectors import chosen_tokens, reaches_new_tokens

__all__ = ["Chosen", "Pass", "PassReader", "direct_pass"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chosen:
    """Some tokens of a pass.

    Attributes:
        example: ``[k]`` index of the example.
        position: ``[k]`` position within the example.
        flat: ``[k]`` row in the pass's tensors, flattened to ``[n * width, d]``.
    """

    example: Ints
    position: Ints
    flat: torch.Tensor


@dataclass
class Pass:
    """One forward pass.

    Attributes:
        rows: The examples: of a generation, their prompts.
        width: Columns of this pass.
        shifts: ``[n]`` padding columns before each example.
        start: The first column of this pass, counted from the batch's first.
        end_of_prompt: Columns of the batch before anything was generated.
        new: ``[n, new columns]`` the generated tokens among them that are still part of an answer.
        new_special: ``[n, new columns]`` which of them the tokenizer calls special.
    """

    rows: tuple[TokenRow, ...]
    width: int
    shifts: Ints
    start: int
    end_of_prompt: int
    new: Bools
    new_special: Bools
    _chosen: dict[Any, Chosen] = field(default_factory=dict[Any, Chosen])

    @property
    def size(self) -> int:
        """Rows of this pass's tensors when flattened."""
        return len(self.rows) * self.width

    def choose(self, tokens: Span | tuple[int, ...], device: torch.device) -> Chosen:
        """The tokens of this pass that are among ``tokens``.

        Raises:
            BadInputError: a position outside an example.
        """
        key = tokens, device
        if key not in self._chosen:
            self._chosen[key] = self._choose(tokens, device)
        return self._chosen[key]

    def _choose(self, tokens: Span | tuple[int, ...], device: torch.device) -> Chosen:
        examples: list[Ints] = []
        positions: list[Ints] = []
        for index, row in enumerate(self.rows):
            found: Ints = np.zeros(0, dtype=np.int64)
            if self.start < self.end_of_prompt:
                found = chosen_tokens(row, tokens)
            if reaches_new_tokens(tokens):
                found = np.concatenate([found, self._new_of(index, tokens)])
            positions.append(found)
            examples.append(np.full(len(found), index, dtype=np.int64))
        example, position = np.concatenate(examples), np.concatenate(positions)
        flat = example * self.width + position + self.shifts[example] - self.start
        return Chosen(example, position, torch.from_numpy(flat).to(device))

    def _new_of(self, index: int, tokens: Span | tuple[int, ...]) -> Ints:
        wanted = self.new[index]
        if isinstance(tokens, Span) and tokens.exclude_special:
            wanted = wanted & ~self.new_special[index]
        first = max(self.start, self.end_of_prompt)
        return np.flatnonzero(wanted).astype(np.int64) + first - self.shifts[index]

    def places(self, chosen: Chosen, site: Site) -> TokenPlaces:
        """What an intervention is told about its rows."""
        return TokenPlaces(
            site,
            tuple(row.id for row in self.rows),
            tuple(int((row.phase == PROMPT).sum()) for row in self.rows),
            chosen.example,
            chosen.position,
        )


class PassReader:
    """Follows the passes of one batch: a single one, or prefill and decode steps.

    Args:
        batch: The tokens that go in.
        generating: Whether tokens are added, so that more passes follow.
        stops: Tokens that end an answer: from there on a row only waits for its batch mates.
        special: Tokens that the tokenizer calls special.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        generating: bool = False,
        stops: Collection[int] = (),
        special: Collection[int] = (),
    ) -> None:
        self._rows = batch.rows
        lengths = np.array([len(row) for row in batch.rows], dtype=np.int64)
        self._prompt = int(lengths.max())
        left = batch.padding_side == "left"
        self._shifts = self._prompt - lengths if left else np.zeros_like(lengths)
        self._generating = generating
        self._stops = np.array(sorted(stops), dtype=np.int64)
        self._special = np.array(sorted(special), dtype=np.int64)
        self._seen = 0
        self._ended = np.zeros(len(lengths), dtype=np.bool_)

    def read(self, ids: Ints, mask_width: int | None) -> Pass:
        """The next pass.

        Args:
            ids: ``[n, width]`` what goes in.
            mask_width: Columns of the attention mask, if there is one: all tokens so far.

        Raises:
            RunError: this is not the pass that had to come.
        """
        n, width = ids.shape
        rerun = self._seen > 0 and width > self._seen  # a model without a cache
        start = 0 if rerun else self._seen
        total = start + width
        begins = self._seen == 0 and width == self._prompt
        fits = n == len(self._rows) and (begins or (self._seen > 0 and self._generating))
        if not fits or (mask_width is not None and mask_width != total):
            raise RunError(
                "the forward pass is not the one that was announced, so that no token can be told",
                got=f"{n} rows, columns {start} to {total}, a mask of {mask_width}",
                expected=f"{len(self._rows)} rows after {self._seen} columns",
            )
        self._seen = total
        new = ids[:, max(self._prompt - start, 0) :]
        return Pass(
            self._rows, width, self._shifts, start, self._prompt,
            self._alive(new, restart=rerun), np.isin(new, self._special),
        )  # fmt: skip

    def _alive(self, new: Ints, *, restart: bool) -> Bools:
        """Generated tokens before their row's first stop token."""
        before = np.zeros_like(self._ended) if restart else self._ended
        ended = np.logical_or.accumulate(np.isin(new, self._stops), axis=1)
        ended = ended | before[:, None]
        if new.shape[1]:
            self._ended = ended[:, -1]
        return ~ended


def direct_pass(
    ids: torch.Tensor | None, mask: torch.Tensor | None, cached: int, special: Collection[int]
) -> Pass:
    """A call of the plain model: its rows are prompts.

    Raises:
        BadInputError: which token is where cannot be told.
    """
    if ids is None or ids.ndim != 2 or cached:
        raise BadInputError(
            "inside an intervention the plain model takes input_ids and no filled cache",
            got=f"a cache of {cached} tokens" if cached else "no input_ids [n, pos]",
            next_step="use model.capture or model.generate",
        )
    n, width = ids.shape
    kept = np.ones((n, width), dtype=np.bool_)
    if mask is not None and mask.ndim == 2:
        kept = mask.bool().cpu().numpy()
    edges = np.abs(np.diff(np.pad(kept, ((0, 0), (1, 1))).astype(np.int8), axis=1)).sum(1)
    if kept.shape != (n, width) or (edges != 2).any():
        raise BadInputError(
            "an attention mask with holes, without a token or of another width",
            next_step="pad on one side only",
        )
    marks = np.array(sorted(special), dtype=np.int64)
    tokens = ids.cpu().numpy().astype(np.int64)
    rows: list[TokenRow] = []
    for index in range(n):
        own = tokens[index][kept[index]]
        row = TokenRow.from_ids(str(index), own)
        rows.append(TokenRow(row.id, own, row.phase, np.isin(own, marks)))
    nothing = np.zeros((n, 0), dtype=np.bool_)
    shifts = kept.argmax(1).astype(np.int64)
    return Pass(tuple(rows), width, shifts, 0, width, nothing, nothing)

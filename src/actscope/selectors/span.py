"""The positions a span keeps."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from actscope.core.activations import TokenRow
from actscope.core.errors import ExampleError, UnknownNameError
from actscope.core.spelling import ROLES, Spelling
from actscope.core.text import PROMPT, RESPONSE, SPAN_KINDS, THINK, Span

__all__ = ["select"]

_Positions = npt.NDArray[np.int64]


def select(row: TokenRow, span: Span) -> _Positions:
    """Positions within the example that a span keeps, ascending.

    Special tokens are dropped after the span has been cut.

    Raises:
        ExampleError: kind ``empty_span``, no token is left; ``no_text``, nobody knows what the
            tokens spell; ``no_roles``, nobody knows whose words they are.
        UnknownNameError: no such span.
    """
    if span.kind not in _KINDS:
        raise UnknownNameError("span", span.kind, SPAN_KINDS)
    positions = _KINDS[span.kind](row, span)
    if span.exclude_special:
        positions = positions[~row.special[positions]]
    if not len(positions):
        raise ExampleError(
            "empty_span",
            f"example {row.id!r}: no token of {len(row)} is left in the span {span}",
            next_step="choose a wider span, or leave the example out",
        )
    return positions


def _all(row: TokenRow, span: Span) -> _Positions:
    return np.arange(len(row), dtype=np.int64)


def _of_phase(phase: int) -> Callable[[TokenRow, Span], _Positions]:
    return lambda row, span: np.flatnonzero(row.phase == phase)


def _answer(row: TokenRow, span: Span) -> _Positions:
    """Row i predicts token i + 1, so the prompt's last row predicts the answer's first token."""
    return np.flatnonzero(row.phase == PROMPT)[-1:]


def _last(row: TokenRow, span: Span) -> _Positions:
    return _all(row, span)[-int(span.start or 1) :]


def _range(row: TokenRow, span: Span) -> _Positions:
    return _all(row, span)[slice(span.start, span.end)]


def _role(row: TokenRow, span: Span) -> _Positions:
    spelling = _spelled(row, span)
    if spelling.no_roles:
        raise ExampleError(
            "no_roles",
            f"example {row.id!r} has no turns to take the span {span} from: {spelling.no_roles}",
            next_step="pass messages, or --chat to make each text a user turn",
        )
    return np.flatnonzero(spelling.roles == ROLES.index(span.kind))


def _match(row: TokenRow, span: Span) -> _Positions:
    spelling = _spelled(row, span)
    # How many characters before each one are part of a match: a token keeps to it in one look-up.
    before = np.zeros(len(spelling.text) + 1, dtype=np.int64)
    for found in re.finditer(span.pattern, spelling.text):
        before[found.start() + 1 : found.end() + 1] = 1
    before = np.cumsum(before)
    starts, ends = spelling.offsets.T
    return np.flatnonzero(before[ends] > before[starts])


def _spelled(row: TokenRow, span: Span) -> Spelling:
    if row.spelling is None:
        raise ExampleError(
            "no_text",
            f"example {row.id!r} is token ids alone: nobody knows what they spell, so no token "
            f"can be in the span {span}",
            next_step="pass text or messages, or choose a span that counts tokens",
        )
    return row.spelling()


_KINDS: dict[str, Callable[[TokenRow, Span], _Positions]] = {
    "all": _all,
    "prompt": _of_phase(PROMPT),
    "response": _of_phase(RESPONSE),
    "think": _of_phase(THINK),
    "answer": _answer,
    "system": _role,
    "user": _role,
    "assistant": _role,
    "last": _last,
    "range": _range,
    "match": _match,
}

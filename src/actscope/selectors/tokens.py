"""Which tokens an intervention changes: the same ones however the computation is cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.text import PROMPT, Span
from actscope.selectors.span import select

__all__ = ["SPANS_OF_PROMPTS", "chosen_tokens", "reaches_new_tokens"]

SPANS_OF_PROMPTS = ("answer", "user", "assistant", "system", "match")
"""Spans that are looked up in the prompt; the others are known of each token when it comes."""


def chosen_tokens(row: TokenRow, tokens: Span | tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Positions within the example, ascending.

    Unlike ``select``, all but ``all`` and ``response`` stays within the prompt: while an answer
    grows, the last token is another one at every step, and what it spells is known too late. A
    prompt alone has no response and that is no error, nor is a prompt that spells no match.

    Args:
        row: The tokens known so far.
        tokens: A span, or positions.

    Raises:
        BadInputError: a position or range outside the example, or a span that keeps none of it.
    """
    n_prompt = int((row.phase == PROMPT).sum())
    if not isinstance(tokens, Span):
        positions = np.asarray(tokens, dtype=np.int64)
        positions = np.where(positions < 0, positions + n_prompt, positions)
        if positions.min() < 0 or positions.max() >= len(row):
            raise BadInputError(
                f"example {row.id!r} has no token {_outside(tokens, positions, len(row))}",
                expected=f"0 to {len(row) - 1}, or -1 to -{n_prompt} from the prompt's end",
                next_step='new tokens of a generation are tokens="response"',
            )
        return np.unique(positions)
    if tokens.kind in SPANS_OF_PROMPTS:
        return _of_the_prompt(row, tokens)
    found = np.arange(len(row), dtype=np.int64)
    if tokens.kind in ("prompt", "response"):
        # Reasoning is part of what was generated: a new token is not known to be any when it comes.
        found = found[(row.phase == PROMPT) == (tokens.kind == "prompt")]
    elif tokens.kind != "all":
        found = found[:n_prompt]
        wanted = slice(-int(tokens.start or 1), None)
        found = found[wanted if tokens.kind == "last" else slice(tokens.start, tokens.end)]
        if not len(found):
            raise BadInputError(
                f"example {row.id!r} has no token in the span {tokens}",
                got=f"{n_prompt} prompt tokens",
            )
    return found[~row.special[found]] if tokens.exclude_special else found


def _of_the_prompt(row: TokenRow, span: Span) -> npt.NDArray[np.int64]:
    """What ``select`` keeps of the prompt alone."""
    places = np.flatnonzero(row.phase == PROMPT)
    try:
        return places[select(row.take(row.phase == PROMPT), span)]
    except ExampleError as error:
        if error.kind == "empty_span":
            return places[:0]
        raise BadInputError(error.what, got=error.got, next_step=error.next_step) from error


def reaches_new_tokens(tokens: Span | tuple[int, ...]) -> bool:
    """Whether tokens that are being generated are among them."""
    return isinstance(tokens, Span) and tokens.kind in ("all", "response")


def _outside(tokens: tuple[int, ...], positions: npt.NDArray[np.int64], length: int) -> int:
    return next(t for t, p in zip(tokens, positions.tolist(), strict=True) if not 0 <= p < length)

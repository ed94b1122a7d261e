"""Which tokens an intervention changes: the same ones however the computation is cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError
from actscope.core.text import PROMPT, RESPONSE, Span

__all__ = ["chosen_tokens", "reaches_new_tokens"]


def chosen_tokens(row: TokenRow, tokens: Span | tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Positions within the example, ascending.

    Unlike ``select``, ``last:K``, ranges and negative positions count within the prompt: while an
    answer grows, the last token is another one at every step. A phase without tokens is no error: a
    prompt alone has no response.

    Args:
        row: The tokens known so far.
        tokens: A span, or positions.

    Raises:
        BadInputError: a position or range outside the example.
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
    found = np.arange(len(row), dtype=np.int64)
    if tokens.kind in ("prompt", "response"):
        found = found[row.phase == (PROMPT if tokens.kind == "prompt" else RESPONSE)]
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


def reaches_new_tokens(tokens: Span | tuple[int, ...]) -> bool:
    """Whether tokens that are being generated are among them."""
    return isinstance(tokens, Span) and tokens.kind in ("all", "response")


def _outside(tokens: tuple[int, ...], positions: npt.NDArray[np.int64], length: int) -> int:
    return next(t for t, p in zip(tokens, positions.tolist(), strict=True) if not 0 <= p < length)

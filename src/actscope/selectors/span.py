"""The positions a span keeps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from actscope.core.activations import TokenRow
from actscope.core.errors import ExampleError, UnknownNameError
from actscope.core.text import PROMPT, RESPONSE, SPAN_KINDS, Span

__all__ = ["select"]


def select(row: TokenRow, span: Span) -> npt.NDArray[np.int64]:
    """Positions within the example that a span keeps, ascending.

    Special tokens are dropped after the span has been cut.

    Raises:
        ExampleError: kind ``empty_span``, no token is left.
        UnknownNameError: no such span.
    """
    positions = np.arange(len(row), dtype=np.int64)
    if span.kind == "all":
        pass
    elif span.kind == "prompt":
        positions = positions[row.phase == PROMPT]
    elif span.kind == "response":
        positions = positions[row.phase == RESPONSE]
    elif span.kind == "last":
        positions = positions[-int(span.start or 1) :]
    elif span.kind == "range":
        positions = positions[slice(span.start, span.end)]
    else:
        raise UnknownNameError("span", span.kind, SPAN_KINDS)
    if span.exclude_special:
        positions = positions[~row.special[positions]]
    if not len(positions):
        raise ExampleError(
            "empty_span",
            f"example {row.id!r}: no token of {len(row)} is left in the span {span}",
            next_step="choose a wider span, or leave the example out",
        )
    return positions

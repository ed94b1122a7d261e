"""Cutting examples of different lengths into batches with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from actscope.core.errors import BadInputError

__all__ = ["length_sorted_batches"]


def length_sorted_batches(
    lengths: Sequence[int], *, batch_tokens: int | None = None, batch_size: int | None = None
) -> list[list[int]]:
    """Indices of the examples of each batch; longest first, so that memory peaks at once.

    The order is a function of the lengths alone (ties by index), so every worker makes the same
    batches.

    Args:
        lengths: Tokens of each example.
        batch_tokens: Largest ``rows * longest`` of a batch; an example longer than the budget goes
            alone.
        batch_size: Largest number of rows of a batch.
    """
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None and (not isinstance(cast("object", value), int) or value < 1):
            raise BadInputError(f"{name} must be a whole number of at least 1", got=repr(value))
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if batches:
            batch = batches[-1]
            widest = lengths[batch[0]]
            fits = batch_tokens is None or (len(batch) + 1) * widest <= batch_tokens
            if fits and (batch_size is None or len(batch) < batch_size):
                batch.append(index)
                continue
        batches.append([index])
    return batches

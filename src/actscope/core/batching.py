"""Cutting examples of different lengths into batches with little padding."""

from __future__ import annotations

from collections.abc import Sequence

from actscope.core.whole_numbers import whole_number

__all__ = ["length_sorted_batches", "padding_of"]


def length_sorted_batches(
    lengths: Sequence[int],
    *,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    pass_tokens: int = 0,
) -> list[list[int]]:
    """Indices of the examples of each batch; longest first, so that memory peaks at once.

    The order is a function of the lengths alone (ties by index), so every worker makes the same
    batches.

    Args:
        lengths: Tokens of each example.
        batch_tokens: Largest ``rows * longest`` of a batch; an example longer than the budget goes
            alone.
        batch_size: Largest number of rows of a batch.
        pass_tokens: What a pass costs beside its tokens, in tokens: the batches then are those
            whose padded tokens and passes together cost least. 0 fills every batch.

    Raises:
        BadInputError: a limit is no whole number of at least 1.
    """
    for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if value is not None:
            whole_number(name, value, 1, instead="None")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if pass_tokens and batch_tokens is not None and batch_size is None:
        ends = _cheapest([lengths[i] for i in order], batch_tokens, pass_tokens)
    else:
        ends = _filled([lengths[i] for i in order], batch_tokens, batch_size)
    return [order[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def padding_of(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> int:
    """Tokens of padding that batches hold."""
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return padded - sum(lengths[i] for batch in batches for i in batch)


def _filled(falling: list[int], batch_tokens: int | None, batch_size: int | None) -> list[int]:
    """Where each batch ends if each takes all it can hold."""
    ends: list[int] = []
    start = 0
    for at in range(1, len(falling) + 1):
        rows = at + 1 - start
        full = at == len(falling)
        full |= batch_tokens is not None and rows * falling[start] > batch_tokens
        full |= batch_size is not None and rows > batch_size
        if full:
            ends.append(at)
            start = at
    return ends


def _cheapest(falling: list[int], batch_tokens: int, pass_tokens: int) -> list[int]:
    """Where each batch ends if padded tokens and passes together are to cost least.

    The best way to cut the first j examples is the best way to cut the first i, and one more batch
    of the others: dynamic programming over j.
    """
    cost = [0]
    begins = [0]
    for end in range(1, len(falling) + 1):
        options: list[tuple[int, int]] = []
        for start in range(end - 1, -1, -1):
            padded = (end - start) * falling[start]
            if padded > batch_tokens and end - start > 1:
                break  # earlier starts are wider still
            options.append((cost[start] + padded + pass_tokens, start))
        best, start = min(options)
        cost.append(best)
        begins.append(start)
    ends: list[int] = []
    at = len(falling)
    while at:
        ends.append(at)
        at = begins[at]
    return ends[::-1]

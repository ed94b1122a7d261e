"""The batches of a unit: by length, and before them those whose texts begin alike."""

from __future__ import annotations

from collections.abc import Sequence

from actscope.core.activations import TokenRow
from actscope.core.batching import length_sorted_batches
from actscope.core.prefixes import shared_batches
from actscope.core.spec import UnitPlan

__all__ = ["batches_of"]


def batches_of(rows: Sequence[TokenRow], plan: UnitPlan) -> list[tuple[int, list[int]]]:
    """Every row once; a function of the rows and the plan alone, so every worker makes the same.

    Returns:
        Pairs of (tokens of the beginnings that the batch shares, indices of its rows).
    """
    batches: list[tuple[int, list[int]]] = []
    if plan.share_prefix:
        budget = plan.batch_tokens or (plan.batch_size or 1) * max(
            [row.longest for row in rows], default=1
        )
        batches = shared_batches([row.token_ids for row in rows], budget)
    taken = {place for _, places in batches for place in places}
    rest = [place for place in range(len(rows)) if place not in taken]
    by_length = length_sorted_batches(
        [rows[place].longest for place in rest],
        batch_tokens=plan.batch_tokens,
        batch_size=plan.batch_size,
        pass_tokens=plan.pass_tokens,
    )
    return batches + [(0, [rest[i] for i in places]) for places in by_length]

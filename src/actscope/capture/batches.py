"""The batches of a unit: by length, and before them those whose texts begin alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actscope.capture.plan import PASS_PART
from actscope.core.activations import Batch, TokenRow
from actscope.core.batching import length_sorted_batches
from actscope.core.prefixes import shared_batches
from actscope.core.spec import UnitPlan

__all__ = ["PlannedBatch", "batches_of"]


@dataclass(frozen=True)
class PlannedBatch:
    """Some rows of a unit that go through the model together.

    Attributes:
        places: Which rows.
        beginnings: By row, how many of its first tokens are computed once for all rows that begin
            so; empty where nothing is shared.
        pass_tokens: What a pass costs beside its tokens, in tokens.
    """

    places: tuple[int, ...]
    beginnings: Mapping[int, int] = field(default_factory=dict[int, int])
    pass_tokens: int = 0

    def batch(self, rows: Sequence[TokenRow], places: Sequence[int]) -> Batch:
        """Its rows, or those of them that memory holds."""
        chosen = tuple(rows[i] for i in places)
        if not self.beginnings:
            return Batch(chosen)
        shared = tuple(self.beginnings[i] for i in places)
        return Batch(chosen, shared=shared, pass_tokens=self.pass_tokens)


def batches_of(
    rows: Sequence[TokenRow], plan: UnitPlan, groups: Sequence[Sequence[int]] | None = None
) -> list[PlannedBatch]:
    """Every row once; a function of the rows and the plan alone, so every worker makes the same.

    Args:
        rows: Of the unit.
        plan: Its budget or batch size, and whether beginnings are shared.
        groups: Rows that are known to begin alike; None looks for them.
    """
    shared = _shared(rows, plan, groups) if plan.share_prefix else []
    taken = {place for batch in shared for place in batch.places}
    rest = [place for place in range(len(rows)) if place not in taken]
    by_length = length_sorted_batches(
        [rows[place].longest for place in rest],
        batch_tokens=plan.batch_tokens,
        batch_size=plan.batch_size,
        pass_tokens=plan.pass_tokens,
    )
    return shared + [PlannedBatch(tuple(rest[i] for i in places)) for places in by_length]


def _shared(
    rows: Sequence[TokenRow], plan: UnitPlan, groups: Sequence[Sequence[int]] | None
) -> list[PlannedBatch]:
    longest = max([row.longest for row in rows], default=1)
    budget = plan.batch_tokens or (plan.batch_size or 1) * longest
    cost = plan.pass_tokens or max(budget // PASS_PART, 1)
    texts = [row.token_ids for row in rows]
    planned: list[PlannedBatch] = []
    for batch in shared_batches(texts, budget, cost, groups):
        beginnings = {place: group.prefix for group in batch for place in group.members}
        planned.append(PlannedBatch(tuple(beginnings), beginnings, cost))
    return planned

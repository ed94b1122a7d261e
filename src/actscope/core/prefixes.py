"""Which texts begin alike, and how they go through a model so that the beginning is read once.

Such a batch takes several passes: one over the beginnings, each padded to the longest, and one or
more over what is left of the texts, cut by length so that little is padded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SHORTEST_SHARED", "Group", "end_passes", "shared_batches"]

SHORTEST_SHARED = 16
"""Tokens: a shorter beginning is not worth a pass of its own."""
LEAST_SAVED = 0.2
"""Of a batch's tokens and passes; below that its texts run as any others."""
LARGEST_WHOLE = 12
"""Tokens of a batch's texts, in budgets: all of their rows are held, shared or not."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Texts that begin alike.

    Attributes:
        prefix: How many tokens they have in common; each has at least one of its own.
        members: Their indices.
    """

    prefix: int
    members: tuple[int, ...]


def shared_batches(
    texts: Sequence[Ids],
    batch_tokens: int,
    pass_tokens: int,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[tuple[Group, ...]]:
    """Batches of texts that begin alike; a function of the texts alone.

    Args:
        texts: Token ids of each.
        batch_tokens: Tokens of a pass, on average of the passes of a batch, unless one group has
            more.
        pass_tokens: What a pass costs beside its tokens, in tokens.
        groups: Texts that are known to begin alike, such as the prompts about one question; None
            looks for them.

    Returns:
        The groups of each batch. What saves nothing is in no batch.
    """
    found = _found(texts) if groups is None else _known(texts, groups)
    costs = _Costs(texts, batch_tokens, pass_tokens)
    batches: list[_Draft] = []
    for group in sorted(found, key=lambda group: (-group.prefix, group.members)):
        for draft in costs.drafts(group):
            both = costs.joined(batches[-1], draft) if batches else None
            batches[len(batches) - (both is not None) :] = [both or draft]
    return [batch.groups for batch in batches if costs.saves(batch)]


def end_passes(lengths: Sequence[int], pass_tokens: int) -> list[list[int]]:
    """Which ends go through the model together: padding and passes are to cost least.

    Args:
        lengths: Tokens of each end.
        pass_tokens: What a pass costs beside its tokens, in tokens; 0 makes one pass of all.

    Returns:
        Indices of the ends of each pass, the longest first.
    """
    alike: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        alike.setdefault(length, []).append(index)
    counts = {length: len(indices) for length, indices in alike.items()}
    return [
        [i for length in together for i in alike[length]] for together in _cut(counts, pass_tokens)
    ]


def _cut(counts: Mapping[int, int], pass_tokens: int) -> list[list[int]]:
    """Lengths that share a pass, falling: dynamic programming over where passes end.

    Args:
        counts: How many ends have each length.
        pass_tokens: As for ``end_passes``.
    """
    falling = sorted(counts, reverse=True)
    if not pass_tokens:
        return [falling]
    cost, begins = [0], [0]
    for stop in range(1, len(falling) + 1):
        rows, best, begin = 0, -1, 0
        for start in range(stop - 1, -1, -1):
            rows += counts[falling[start]]
            whole = cost[start] + rows * falling[start] + pass_tokens
            if best < 0 or whole <= best:
                best, begin = whole, start
        cost.append(best)
        begins.append(begin)
    passes: list[list[int]] = []
    stop = len(falling)
    while stop:
        passes.append(falling[begins[stop] : stop])
        stop = begins[stop]
    return passes[::-1]


@dataclass(frozen=True)
class _Draft:
    """A batch in the making.

    Attributes:
        groups: Its groups; the first has the longest beginning.
        ends: How many ends have each length.
        longest: Tokens of its longest text.
        cost: Tokens of its passes, padding and what passes cost beside them included.
        passes: How many.
    """

    groups: tuple[Group, ...]
    ends: Mapping[int, int]
    longest: int
    cost: int
    passes: int

    @property
    def texts(self) -> int:
        """How many."""
        return sum(self.ends.values())


class _Costs:
    """What batches cost in tokens, padding and passes included."""

    def __init__(self, texts: Sequence[Ids], batch_tokens: int, pass_tokens: int) -> None:
        self._texts = texts
        self._budget = batch_tokens
        self._pass = pass_tokens

    def drafts(self, group: Group) -> list[_Draft]:
        """The group as a batch, or parts of it that fit memory."""
        lengths = {i: len(self._texts[i]) for i in group.members}
        longest = max(lengths.values())
        size = max(LARGEST_WHOLE * self._budget // longest, 2)
        parts = [group.members[i : i + size] for i in range(0, len(group.members), size)]
        return [
            self._draft(
                (Group(group.prefix, part),),
                Counter(lengths[i] - group.prefix for i in part),
                longest,
            )
            for part in parts
        ]

    def joined(self, one: _Draft, more: _Draft) -> _Draft | None:
        """Both as one batch, where that fits and costs no more."""
        ends = Counter(one.ends)
        ends.update(more.ends)
        both = self._draft(one.groups + more.groups, ends, max(one.longest, more.longest))
        whole = both.texts * both.longest
        tokens = both.cost - self._pass * both.passes
        fits = tokens <= self._budget * both.passes and whole <= LARGEST_WHOLE * self._budget
        return both if fits and both.cost <= one.cost + more.cost else None

    def saves(self, draft: _Draft) -> bool:
        """Whether it costs clearly less than its texts do without sharing."""
        plain = sum(len(self._texts[i]) for group in draft.groups for i in group.members)
        plain += self._pass * -(-plain // self._budget)
        return draft.cost <= (1 - LEAST_SAVED) * plain

    def _draft(self, groups: tuple[Group, ...], ends: Mapping[int, int], longest: int) -> _Draft:
        cut = _cut(ends, self._pass)
        tokens = len(groups) * groups[0].prefix
        tokens += sum(part[0] * sum(ends[length] for length in part) for part in cut)
        passes = len(cut) + 1
        return _Draft(groups, ends, longest, tokens + self._pass * passes, passes)


def _known(texts: Sequence[Ids], groups: Sequence[Sequence[int]]) -> list[Group]:
    """What the texts of each group have in common, where it is worth sharing."""
    found: list[Group] = []
    for members in groups:
        first = texts[members[0]]
        prefix = min([_common(first, texts[i]) for i in members[1:]], default=0)
        prefix = min(prefix, min(len(texts[i]) for i in members) - 1)
        if prefix >= SHORTEST_SHARED:
            found.append(Group(prefix, tuple(members)))
    return found


def _found(texts: Sequence[Ids]) -> list[Group]:
    """Neighbours in alphabetical order whose common beginning is at least half of each text."""
    order = sorted(range(len(texts)), key=lambda i: (texts[i].tolist(), i))
    groups: list[Group] = []
    at = 0
    while at < len(order):
        first = texts[order[at]]
        members, prefix = [order[at]], len(first)
        for place in order[at + 1 :]:
            both = min(_common(first, texts[place]), prefix, len(texts[place]) - 1)
            both = min(both, len(first) - 1)  # every text keeps a token of its own
            longest = max(len(texts[i]) for i in (*members, place))
            if both < max(SHORTEST_SHARED, longest / 2):
                break
            members.append(place)
            prefix = both
        if len(members) > 1:
            groups.append(Group(prefix, tuple(sorted(members))))
        at += len(members)
    return groups


def _common(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n

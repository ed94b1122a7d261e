"""Which texts begin alike, and how they go through a model so that the beginning is read once.

Such a batch takes several passes: one over the beginnings, each padded to the longest, and one or
more over what is left of the texts, cut by length so that little is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SHORTEST_SHARED", "Group", "end_passes", "shared_batches"]

SHORTEST_SHARED = 16
"""Tokens: a shorter beginning is not worth a pass of its own."""
LEAST_SAVED = 0.2
"""Of a batch's tokens and passes; below that its texts run as any others."""
LARGEST_WHOLE = 8
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
        batch_tokens: Largest number of tokens of a pass, unless one group has more.
        pass_tokens: What a pass costs beside its tokens, in tokens.
        groups: Texts that are known to begin alike, such as the prompts about one question; None
            looks for them.

    Returns:
        The groups of each batch. What saves nothing is in no batch.
    """
    found = _found(texts) if groups is None else _known(texts, groups)
    costs = _Costs(texts, batch_tokens, pass_tokens)
    pieces = [piece for group in found for piece in costs.pieces(group)]
    batches: list[list[Group]] = []
    for piece in sorted(pieces, key=lambda group: (-group.prefix, group.members)):
        if batches and costs.together(batches[-1], piece):
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return [tuple(batch) for batch in batches if costs.saves(batch)]


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
    falling = sorted(alike, reverse=True)
    if not pass_tokens:
        return [[index for length in falling for index in alike[length]]]
    cost, begins = [0], [0]
    for stop in range(1, len(falling) + 1):
        options: list[tuple[int, int]] = []
        rows = 0
        for start in range(stop - 1, -1, -1):
            rows += len(alike[falling[start]])
            options.append((cost[start] + rows * falling[start] + pass_tokens, start))
        best, start = min(options)
        cost.append(best)
        begins.append(start)
    passes: list[list[int]] = []
    stop = len(falling)
    while stop:
        together = falling[begins[stop] : stop]
        passes.append([index for length in together for index in alike[length]])
        stop = begins[stop]
    return passes[::-1]


class _Costs:
    """What batches cost in tokens, padding and passes included."""

    def __init__(self, texts: Sequence[Ids], batch_tokens: int, pass_tokens: int) -> None:
        self._texts = texts
        self._budget = batch_tokens
        self._pass = pass_tokens

    def pieces(self, group: Group) -> list[Group]:
        """The group, or parts of it that fit memory."""
        longest = max(len(self._texts[i]) for i in group.members)
        size = max(LARGEST_WHOLE * self._budget // longest, 2)
        parts = [group.members[i : i + size] for i in range(0, len(group.members), size)]
        return [Group(group.prefix, part) for part in parts]

    def together(self, batch: Sequence[Group], more: Group) -> bool:
        """Whether one more group fits, and costs less with the others than alone."""
        joined = [*batch, more]
        passes = self._passes(joined)
        places = [i for group in joined for i in group.members]
        whole = len(places) * max(len(self._texts[i]) for i in places)
        if max(passes) > self._budget or whole > LARGEST_WHOLE * self._budget:
            return False
        return self._sum(passes) <= self._sum(self._passes(batch)) + self._sum(self._passes([more]))

    def saves(self, batch: Sequence[Group]) -> bool:
        """Whether it costs clearly less than its texts do without sharing."""
        plain = sum(len(self._texts[i]) for group in batch for i in group.members)
        plain += self._pass * -(-plain // self._budget)
        return self._sum(self._passes(batch)) <= (1 - LEAST_SAVED) * plain

    def _passes(self, batch: Sequence[Group]) -> list[int]:
        """Tokens of each pass, padding included."""
        ends = [len(self._texts[i]) - group.prefix for group in batch for i in group.members]
        cut = end_passes(ends, self._pass)
        first = len(batch) * max(group.prefix for group in batch)
        return [first, *(len(part) * max(ends[i] for i in part) for part in cut)]

    def _sum(self, passes: Sequence[int]) -> int:
        return sum(passes) + self._pass * len(passes)


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

"""Which texts begin alike, and how they go through a model so that the beginning is read once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SHORTEST_SHARED", "shared_batches"]

SHORTEST_SHARED = 16
"""Tokens: a shorter beginning is not worth a pass of its own."""
LEAST_SAVED = 0.2
"""Of a batch's tokens; below that it runs as any other batch."""
ALIKE = 0.9
"""Groups go together if the shortest beginning has at least so much of the longest."""

Ids = npt.NDArray[np.int64]
Group = tuple[int, list[int]]


def shared_batches(texts: Sequence[Ids], batch_tokens: int) -> list[tuple[int, list[int]]]:
    """Batches of texts that begin alike; a function of the texts alone.

    Args:
        texts: Token ids of each.
        batch_tokens: Largest number of tokens a batch computes, unless one group has more.

    Returns:
        Pairs of (tokens of the shared beginnings, indices of the texts). Texts of one batch whose
        first so many tokens are equal can share them. What shares nothing is in no batch.
    """
    groups = sorted(_groups(texts), key=lambda group: (-group[0], group[1]))
    batches: list[tuple[int, list[Group]]] = []
    for prefix, members in groups:
        if batches:
            first, others = batches[-1][1][0][0], batches[-1][1]
            joined = [*others, (prefix, members)]
            if prefix >= ALIKE * first and _cost(texts, prefix, joined) <= batch_tokens:
                batches[-1] = (prefix, joined)
                continue
        batches.append((prefix, [(prefix, members)]))
    found: list[tuple[int, list[int]]] = []
    for prefix, joined in batches:
        places = [place for _, members in joined for place in members]
        plain = len(places) * max(len(texts[i]) for i in places)
        if _cost(texts, prefix, joined) <= (1 - LEAST_SAVED) * plain:
            found.append((prefix, places))
    return found


def _cost(texts: Sequence[Ids], prefix: int, groups: Sequence[Group]) -> int:
    """Tokens that are computed, padding included."""
    places = [place for _, members in groups for place in members]
    return prefix * len(groups) + len(places) * max(len(texts[i]) - prefix for i in places)


def _groups(texts: Sequence[Ids]) -> list[Group]:
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
            groups.append((prefix, sorted(members)))
        at += len(members)
    return groups


def _common(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n

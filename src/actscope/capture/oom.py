"""Out of memory: halve the batch and try again, and cut later batches beforehand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["Limits", "LimitsByKind", "run_halving"]

_CPU_COMPLAINT = "DefaultCPUAllocator: can't allocate memory"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Limits:
    """How many padded tokens of one kind of pass memory was found to hold.

    What a pass needs grows with its padded tokens, and with attention also with their product with
    the longest row. A pass that failed therefore limits those with rows about as long or longer
    (by powers of two), and leaves those with shorter rows alone.
    """

    def __init__(self) -> None:
        self._most: dict[int, int] = {}

    def allow(self, rows: int, longest: int) -> bool:
        """Whether nothing speaks against so many rows, padded to the longest."""
        width = longest.bit_length()
        return all(rows * longest <= most for than, most in self._most.items() if than <= width)

    def lower(self, rows: int, longest: int) -> None:
        """So many rows did not fit, and their halves did: later passes are no larger than those."""
        most, width = (rows - rows // 2) * longest, longest.bit_length()
        self._most[width] = min(most, self._most.get(width, most))


LimitsByKind = defaultdict[str, Limits]
"""Of one run: passes of different kinds need different amounts for as many tokens."""


def run_halving(
    items: Sequence[Item],
    run: Callable[[Sequence[Item]], Result],
    on_halving: Callable[[int], None],
    *,
    tokens: Callable[[Item], int] = lambda item: 1,
    limits: Limits | None = None,
    relieve: Callable[[], bool] = lambda: False,
) -> list[tuple[Sequence[Item], Result | None]]:
    """Run items as one batch, or as ever smaller ones where memory does not suffice.

    Args:
        items: What would be one batch.
        run: Runs some of them.
        on_halving: Told the size of every batch that did not fit, or was cut beforehand.
        tokens: How long an item is.
        limits: What earlier batches have shown; learns from this one.
        relieve: Takes what was begun before, after every failure: its buffers may be the next that
            ``run`` fills. Returns whether there was any; an item that failed beside it is tried
            once more.

    Returns:
        Pairs of (items, result) in order; the result is None for a single item that does not fit
        by itself.
    """
    limits = Limits() if limits is None else limits
    longest = max(map(tokens, items))
    tried = len(items) == 1 or limits.allow(len(items), longest)
    if tried:
        found = _tried(items, run, relieve)
        if found:
            return [(items, found[0])]
    on_halving(len(items))
    if len(items) == 1:
        return [(items, None)]
    middle = len(items) // 2
    done = [
        pair
        for half in (items[:middle], items[middle:])
        for pair in run_halving(
            half, run, on_halving, tokens=tokens, limits=limits, relieve=relieve
        )
    ]
    # Where one item fits nowhere, the batch failed because of it, whatever its size.
    if tried and all(result is not None for _, result in done):
        limits.lower(len(items), longest)
    return done


def _tried(
    items: Sequence[Item], run: Callable[[Sequence[Item]], Result], relieve: Callable[[], bool]
) -> list[Result]:
    """The result; nothing where memory does not suffice."""
    found = _fitting(items, run)
    if found:
        return found
    relieved = relieve()
    _empty_cache()
    if not relieved or len(items) > 1:
        return []
    found = _fitting(items, run)
    if not found:
        _empty_cache()
    return found


def _fitting(items: Sequence[Item], run: Callable[[Sequence[Item]], Result]) -> list[Result]:
    import torch

    try:
        return [run(items)]
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_COMPLAINT not in str(error):
            raise
        # The traceback of the failed pass holds its tensors: the retry starts after this frame
        # has let go of it.
        return []


def _empty_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()

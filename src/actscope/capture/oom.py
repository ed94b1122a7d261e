"""Out of memory: halve the batch and try again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["run_halving"]

_CPU_COMPLAINT = "DefaultCPUAllocator: can't allocate memory"

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_halving(
    items: Sequence[Item],
    run: Callable[[Sequence[Item]], Result],
    on_halving: Callable[[int], None],
) -> list[tuple[Sequence[Item], Result | None]]:
    """Run items as one batch, or as ever smaller ones where memory does not suffice.

    Args:
        items: What would be one batch.
        run: Runs some of them.
        on_halving: Told the size of every batch that did not fit.

    Returns:
        Pairs of (items, result) in order; the result is None for a single item that does not fit
        by itself.
    """
    if not _fits(items, run, found := []):
        on_halving(len(items))
        if len(items) == 1:
            return [(items, None)]
        middle = len(items) // 2
        return [
            *run_halving(items[:middle], run, on_halving),
            *run_halving(items[middle:], run, on_halving),
        ]
    return [(items, found[0])]


def _fits(
    items: Sequence[Item], run: Callable[[Sequence[Item]], Result], found: list[Result]
) -> bool:
    import torch

    try:
        found.append(run(items))
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _CPU_COMPLAINT not in str(error):
            raise
        # The traceback of the failed pass holds its tensors: the retry starts after this frame
        # has let go of it.
    else:
        return True
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False

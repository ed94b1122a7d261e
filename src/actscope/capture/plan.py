"""Cut a range of a dataset into units of work; keep to the plan a run was begun with."""

from __future__ import annotations

from dataclasses import dataclass

from actscope.capture.options import AUTO, CaptureOptions
from actscope.core.errors import BadInputError, RunMismatchError
from actscope.core.spec import UnitPlan
from actscope.core.whole_numbers import whole_number

__all__ = [
    "LARGEST_UNIT",
    "Footprint",
    "adopt",
    "choose_unit_size",
    "dataset_range",
    "make_plan",
]

UNIT_BYTES, BATCH_BYTES = 128 << 20, 2 << 30
"""About the largest unit: one is held in memory while it is filled, one while it is written. Where
one batch is larger a unit may be as large as a batch, up to the second figure: batches do not cross
units, and a pass over less than its budget wastes the machine."""
LARGEST_UNIT = 1024
PASS_PART = 16
"""A pass costs about as much as this part of the best budget, beside its tokens."""


@dataclass(frozen=True)
class Footprint:
    """What one example of a dataset costs, about.

    Attributes:
        tokens: Tokens through the model.
        bytes: Bytes stored.
    """

    tokens: float
    bytes: float


def dataset_range(size: int, options: CaptureOptions) -> tuple[int, int]:
    """(start, stop) of the range asked for, cut to the dataset.

    Raises:
        BadInputError: it begins after the last example.
    """
    if options.offset > size or (size and options.offset == size):
        raise BadInputError(
            "the offset lies beyond the dataset",
            got=options.offset,
            expected=f"0 to {max(size - 1, 0)}: the dataset has {size} examples",
        )
    stop = size if options.limit is None else min(size, options.offset + options.limit)
    return options.offset, stop


def choose_unit_size(footprint: Footprint, batch_tokens: float, unit_tokens: float) -> int:
    """A power of two whose units are no long work and fit memory, from 1 to ``LARGEST_UNIT``.

    Args:
        footprint: Of one example.
        batch_tokens: Tokens of a forward pass.
        unit_tokens: Tokens through the model that are work enough; see ``budget.unit_tokens``.
    """
    tokens = max(footprint.tokens, 1)
    batch = footprint.bytes * batch_tokens / tokens
    most = min(
        unit_tokens / tokens,
        max(UNIT_BYTES, min(batch, BATCH_BYTES)) / max(footprint.bytes, 1),
        LARGEST_UNIT,
    )
    return 1 << (max(int(most), 1).bit_length() - 1)


def make_plan(
    bounds: tuple[int, int],
    unit_size: int,
    options: CaptureOptions,
    batch_size: int | None,
    auto: int = 512,
    *,
    share_prefix: bool = False,
) -> UnitPlan:
    """The plan of a new run; batches are by token budget unless a batch size is given.

    Args:
        bounds: The range.
        unit_size: Examples of a unit.
        options: With a token budget, or ``auto``.
        batch_size: Examples of a batch, in place of a budget.
        auto: The budget that ``auto`` came to.
        share_prefix: Whether texts that begin alike share that part.

    Raises:
        BadInputError: a number is no whole number of at least 1, or both a batch size and a budget
            were asked for.
    """
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1, instead="None")
        if options.batch_tokens != AUTO:
            raise BadInputError(
                "a batch size or a token budget bounds a batch, not both",
                got=f"batch_size={batch_size} and batch_tokens={options.batch_tokens}",
                next_step="leave one of them out",
            )
        return UnitPlan(*bounds, unit_size, batch_size=batch_size, share_prefix=share_prefix)
    budget = auto if isinstance(options.batch_tokens, str) else options.batch_tokens
    # Answers are decoded step by step: there a pass more costs more than padding
    part = 0 if options.generation is not None else budget // PASS_PART
    return UnitPlan(
        *bounds, unit_size, batch_tokens=budget, pass_tokens=part, share_prefix=share_prefix
    )


def adopt(stored: UnitPlan | None, plan: UnitPlan, where: str) -> tuple[UnitPlan, list[str]]:
    """The plan to work by: the stored one where the run exists.

    How a run is cut was decided when it began, so that every worker makes the same bytes. Another
    range is another run, which may be merged with this one later.

    Returns:
        The plan, and the names of what was asked for in vain.

    Raises:
        RunMismatchError: the run covers another range.
    """
    if stored is None:
        return plan, []
    if (stored.start, stored.stop) != (plan.start, plan.stop):
        begun, asked = (f"examples {p.start} to {p.stop}" for p in (stored, plan))
        raise RunMismatchError(
            where,
            [("range", begun, asked)],
            next_step="choose another output folder: runs of one spec over different ranges merge",
        )
    before, now = stored.to_json(), plan.to_json()
    asked_for = now.keys() - {"threads", "pass_tokens"}  # nobody asks for these
    return stored, [name for name in now if name in asked_for and before[name] != now[name]]

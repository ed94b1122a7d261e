"""What a run would cost, before it costs anything."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from actscope.capture.estimate import with_answer
from actscope.capture.extractor import ActivationExtractor
from actscope.capture.options import CaptureOptions
from actscope.capture.prepare import Prepared
from actscope.core.activations import Batch, TokenRow
from actscope.core.batching import length_sorted_batches
from actscope.core.protocols import GenerationParams
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan
from actscope.core.text import Span

__all__ = ["UNIT_OVERHEAD", "DryRun", "seconds_per_token"]

UNIT_OVERHEAD = 16 << 10
"""Headers and the commit record of one unit, about."""


@dataclass(frozen=True)
class DryRun:
    """The figures of a run that was not made.

    Attributes:
        path: Where it would be.
        examples: Examples that would be captured.
        already_done: Examples of the range that are on disk already.
        tokens: Tokens of the examples; with generation the most there can be.
        failures: Examples that cannot be captured, by kind.
        bytes_by_site: Bytes of each site's array.
        dtypes: dtype on disk of each site.
        table_bytes: Bytes of records, token ids, positions and offsets.
        free_bytes: Free disk where it would be; None in a remote folder.
        seconds: Time the loaded model would need, from a timed probe; None where there is nothing
            to time.
        units: Units that would be written.
        plan: How the range is cut.
        padding: Tokens of padding per token, batches that share beginnings left aside.
        alone: Examples longer than the token budget of a batch: each has one of its own.
        shared: Tokens of beginnings that texts share and that are computed once; 0 where the plan
            shares nothing.
        saved: How many of these need not be computed again.
        upper_bound: True where answers may turn out shorter, or bytes fewer, than counted.
    """

    path: Path
    examples: int
    already_done: int
    tokens: int
    bytes_by_site: Mapping[Site, int]
    dtypes: Mapping[Site, str]
    table_bytes: int
    free_bytes: int | None
    seconds: float | None
    units: int
    plan: UnitPlan
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    padding: float = 0.0
    alone: int = 0
    shared: int = 0
    saved: int = 0
    upper_bound: bool = False

    @property
    def total_bytes(self) -> int:
        """Everything that would be written, about: arrays and tables exactly, headers roughly."""
        return sum(self.bytes_by_site.values()) + self.table_bytes + self.units * UNIT_OVERHEAD

    @property
    def fits(self) -> bool:
        """Whether the free disk suffices; yes where nobody knows how much there is."""
        return self.free_bytes is None or self.total_bytes <= self.free_bytes


def seconds_per_token(
    extractor: ActivationExtractor,
    items: Sequence[Prepared],
    plan: UnitPlan,
    options: CaptureOptions,
) -> float | None:
    """Time one batch of the plan, answers included, after a pass that warms up."""
    if not items:
        return None
    every = replace(extractor.selection, span=Span())  # what a span keeps costs next to nothing
    rows = [with_answer(item.row, options, every.span) for item in items]
    places = length_sorted_batches(
        [row.longest for row in rows],
        batch_tokens=plan.batch_tokens,
        batch_size=plan.batch_size,
        pass_tokens=plan.pass_tokens,
    )[0]
    batch = Batch(tuple(rows[i] for i in places))
    with extractor.model.open(every) as session:
        session.run(batch)
        began = time.perf_counter()
        session.run(batch)
        taken = time.perf_counter() - began
    if options.generation is not None:
        steps = min(options.generation.max_new_tokens, 4)
        short = replace(options.generation, max_new_tokens=steps)
        prompts = [items[i].row for i in places]
        generating = _time_answers(extractor, prompts, short)
        generating *= options.generation.max_new_tokens / steps
        live = extractor.model.answer_capture(short, extractor.selection).mode == "live"
        taken = generating + (0.0 if live else taken)
    return taken / sum(len(row) for row in batch.rows)


def _time_answers(
    extractor: ActivationExtractor, prompts: Sequence[TokenRow], params: GenerationParams
) -> float:
    model, selection = extractor.model, extractor.selection
    live = model.answer_capture(params, selection).mode == "live"
    began = time.perf_counter()
    if live:
        model.generate_live(prompts, params, selection)
    else:
        model.generate_rows(prompts, params)
    return time.perf_counter() - began

"""One unit: encode, answer, batch, run, and put everything back in dataset order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from actscope.capture.extractor import ActivationExtractor
from actscope.capture.generation import Answered, answer_all
from actscope.capture.oom import run_halving
from actscope.capture.options import CaptureOptions
from actscope.capture.prepare import Prepared, example_record, prepare_all
from actscope.capture.progress import Progress
from actscope.core.activations import ActivationBatch, Batch, ExampleFailure, empty_rows
from actscope.core.arrays import dtype_of
from actscope.core.batching import length_sorted_batches
from actscope.core.errors import ExampleError
from actscope.core.protocols import AnswerCapture, Source
from actscope.core.spec import UnitPlan
from actscope.selectors import select

__all__ = ["Unit", "UnitWorker"]


@dataclass(frozen=True)
class Unit:
    """A finished unit, not yet written.

    Attributes:
        batch: Its activations, in dataset order.
        metadata: Its bounds, the time it took, and batches that had to be halved.
    """

    batch: ActivationBatch
    metadata: dict[str, Any]


class UnitWorker:
    """Captures units of one dataset.

    Args:
        extractor: Open, or opened anew for each forward pass.
        source: The dataset.
        options: What to do with its examples.
        plan: How they are batched.
        progress: Told after every batch.
        check: Called between two batches; raises to leave the unit.
    """

    def __init__(
        self,
        extractor: ActivationExtractor,
        source: Source,
        options: CaptureOptions,
        plan: UnitPlan,
        progress: Progress,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._extractor = extractor
        self._source = source
        self._options = options
        self._plan = plan
        self._progress = progress
        self._check = check

    def capture(self, start: int, stop: int) -> Unit:
        """Capture the examples of a range.

        What goes wrong with one example is a failure on record and the rest goes on; only a prompt
        that is too long under the policy ``error`` stops, before anything of the unit is written.

        Raises:
            ExampleError: that prompt, named.
        """
        began = time.perf_counter()
        model = self._extractor.model
        examples = list(self._source.examples(start, stop))
        items, failures = prepare_all(model, self._options, examples, start)
        unprepared = len(failures)
        answered = self._answered(items)
        failures += answered.failures + [_out_of_memory(item) for item in answered.lost]
        items, parts, order = answered.items, answered.parts, answered.order
        if self._capture_of_answers is None or self._capture_of_answers.mode == "replay":
            items, empty = self._with_span(items)
            parts, order, lost = self._run(items, answered.halved)
            failures += empty + [_out_of_memory(item) for item in lost]
        self._progress.advanced(len(failures) + unprepared * (self._samples - 1), 0)
        batch = self._assemble(parts, order, items, failures)
        metadata: dict[str, Any] = {
            "start": start,
            "stop": stop,
            "timings": {"capture": round(time.perf_counter() - began, 6)},
        }
        if answered.halved:
            metadata["halved_batches"] = answered.halved
        if self._capture_of_answers is not None:
            metadata["answers"] = asdict(self._capture_of_answers)
        return Unit(batch, metadata)

    @cached_property
    def _capture_of_answers(self) -> AnswerCapture | None:
        """How activations of answers are taken; None where there are none."""
        params = self._options.generation
        if params is None:
            return None
        return self._extractor.model.answer_capture(params, self._extractor.selection)

    @property
    def _samples(self) -> int:
        """Rows that each prompt becomes."""
        return self._options.generation.n if self._options.generation else 1

    def _answered(self, items: list[Prepared]) -> Answered:
        """The prompts with their answers, and with activations where those are taken live."""
        params, how = self._options.generation, self._capture_of_answers
        if params is None or how is None or not items:
            return Answered(items)
        items = [replace(i, row=row) for i in items for row in i.row.samples(params.n)]
        return answer_all(
            self._extractor.model,
            params,
            items,
            self._plan,
            self._check,
            live=self._extractor.selection if how.mode == "live" else None,
            advanced=self._progress.advanced,
        )

    def _with_span(self, items: Sequence[Prepared]) -> tuple[list[Prepared], list[ExampleFailure]]:
        """Leave out examples whose span holds no token, before they cost a forward pass."""
        kept: list[Prepared] = []
        failures: list[ExampleFailure] = []
        for item in items:
            try:
                select(item.row, self._extractor.selection.span)
                kept.append(item)
            except ExampleError as error:
                failures.append(ExampleFailure(item.row.id, item.index, error.kind, error.what))
        return kept, failures

    def _run(
        self, items: Sequence[Prepared], halved: list[int]
    ) -> tuple[list[ActivationBatch], list[int], list[Prepared]]:
        """Forward passes over length-sorted batches.

        Returns:
            The batches, the place among ``items`` of each of their examples, and the items that do
            not fit memory even alone.
        """
        batches = length_sorted_batches(
            [item.row.longest for item in items],
            batch_tokens=self._plan.batch_tokens,
            batch_size=self._plan.batch_size,
        )
        parts: list[ActivationBatch] = []
        order: list[int] = []
        lost: list[Prepared] = []

        def run(places: Sequence[int]) -> ActivationBatch:
            return self._extractor.extract(Batch(tuple(items[i].row for i in places)))

        for places in batches:
            self._check()
            for done, part in run_halving(places, run, halved.append):
                if part is None:
                    lost += [items[i] for i in done]
                    continue
                parts.append(part)
                order += done
                self._progress.advanced(len(done), sum(len(items[i].row) for i in done))
        return parts, order, lost

    def _assemble(
        self,
        parts: list[ActivationBatch],
        order: list[int],
        items: Sequence[Prepared],
        failures: list[ExampleFailure],
    ) -> ActivationBatch:
        ranks = np.argsort(np.argsort(order)).tolist()
        whole = ActivationBatch.join(parts, ranks) if parts else self._nothing()
        model = self._extractor.model
        records = tuple(
            example_record(model, items[place], self._options) for place in sorted(order)
        )
        ids = whole.token_ids if self._options.keep_text else np.zeros(0, dtype=np.int64)
        return replace(
            whole,
            examples=records,
            token_ids=ids,
            failures=tuple(sorted(failures, key=lambda failure: failure.index)),
        )

    def _nothing(self) -> ActivationBatch:
        """The batch of a unit none of whose examples could be captured."""
        model, selection = self._extractor.model, self._extractor.selection
        pools = selection.strategy.pools
        dtype = dtype_of("float32" if pools else model.dtype)
        zero = np.zeros(1, dtype=np.int64)
        return ActivationBatch(
            arrays={s: empty_rows(s, model.width(s), dtype) for s in selection.sites},
            offsets=zero,
            positions=np.zeros(0, dtype=np.int32),
            examples=(),
            token_ids=np.zeros(0, dtype=np.int64),
            token_offsets=zero.copy(),
            phase=np.zeros(0, dtype=np.uint8),
            pooled=pools,
        )


def _out_of_memory(item: Prepared) -> ExampleFailure:
    return ExampleFailure(
        item.row.id,
        item.index,
        "out_of_memory",
        f"example {item.row.id!r} ({len(item.row)} tokens) does not fit memory even alone",
    )

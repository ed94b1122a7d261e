"""One unit: encode, answer, batch, run, and put everything back in dataset order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from actscope.capture.ahead import PassesAhead
from actscope.capture.assembly import Assembly, UnitMemory
from actscope.capture.batches import batches_of
from actscope.capture.extractor import ActivationExtractor
from actscope.capture.generation import Answered, answer_all
from actscope.capture.oom import Limits, LimitsByKind
from actscope.capture.options import CaptureOptions
from actscope.capture.prepare import Prepared, example_record, prepare_all
from actscope.capture.progress import Progress
from actscope.core.activations import (
    ActivationBatch,
    ExampleFailure,
    ExampleRecord,
    empty_rows,
)
from actscope.core.arrays import dtype_of
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
        metadata: Its bounds, the time it took, and sizes of batches that were halved
            because memory did not hold them, or those before.
        release: To be called when nothing reads its arrays any more: a later unit uses their
            memory.
    """

    batch: ActivationBatch
    metadata: dict[str, Any]
    release: Callable[[], None]


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
        self._free: list[UnitMemory] = []
        self._limits = LimitsByKind(Limits)

    def capture(self, start: int, stop: int) -> Unit:
        """Capture the examples of a range.

        What goes wrong with one example is a failure on record and the rest goes on; only a prompt
        that is too long under the policy ``error`` stops, before anything of the unit is written.

        Raises:
            ExampleError: that prompt, named.
        """
        began = time.perf_counter()
        memory = self._free.pop() if self._free else UnitMemory()
        model = self._extractor.model
        examples = list(self._source.examples(start, stop))
        items, failures = prepare_all(model, self._options, examples, start)
        unprepared = len(failures)
        answered = self._answered(items)
        failures += answered.failures + [_out_of_memory(item) for item in answered.lost]
        if self._capture_of_answers is None or self._capture_of_answers.mode == "replay":
            items, kept, empty = self._with_span(answered.items)
            whole, lost = self._run(items, kept, answered.halved, memory)
            failures += empty + [_out_of_memory(item) for item in lost]
        else:
            whole = self._joined(answered)
        self._progress.advanced(len(failures) + unprepared * (self._samples - 1), 0)
        batch = self._described(whole, failures)
        metadata: dict[str, Any] = {
            "start": start,
            "stop": stop,
            "timings": {"capture": round(time.perf_counter() - began, 6)},
        }
        if answered.halved:
            metadata["halved_batches"] = answered.halved
        if self._capture_of_answers is not None:
            metadata["answers"] = asdict(self._capture_of_answers)
        return Unit(batch, metadata, lambda: self._free.append(memory))

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
            limits=self._limits["answers"],
            live=self._extractor.selection if how.mode == "live" else None,
            advanced=self._progress.advanced,
        )

    def _with_span(
        self, items: Sequence[Prepared]
    ) -> tuple[list[Prepared], list[int], list[ExampleFailure]]:
        """Leave out examples whose span holds no token, before they cost a forward pass.

        Returns:
            The others, how many tokens each of them keeps, and what was left out.
        """
        ready: list[Prepared] = []
        kept: list[int] = []
        failures: list[ExampleFailure] = []
        for item in items:
            try:
                kept.append(len(select(item.row, self._extractor.selection.span)))
                ready.append(item)
            except ExampleError as error:
                failures.append(ExampleFailure(item.row.id, item.index, error.kind, error.what))
        return ready, kept, failures

    def _run(
        self,
        items: Sequence[Prepared],
        kept: Sequence[int],
        halved: list[int],
        memory: UnitMemory,
    ) -> tuple[ActivationBatch, list[Prepared]]:
        """Forward passes over length-sorted batches.

        Returns:
            The unit, and the items that do not fit memory even alone.
        """
        rows = [item.row for item in items]
        whole = Assembly(rows, kept, memory)
        lost: set[int] = set()
        with self._extractor.opened():
            passes = PassesAhead(
                rows, whole, self._extractor.begin, self._limits, halved, self._progress.advanced
            )
            for planned in batches_of(rows, self._plan):
                self._check()
                lost.update(passes.run(planned))
            passes.take_all()
        if not len(whole):
            return self._nothing(), [items[i] for i in sorted(lost)]
        done = [item for place, item in enumerate(items) if place not in lost]
        return whole.batch(self._records(done)), [items[i] for i in sorted(lost)]

    def _joined(self, answered: Answered) -> ActivationBatch:
        """What was captured while answering."""
        if not answered.parts:
            return self._nothing()
        ranks = np.argsort(np.argsort(answered.order)).tolist()
        items = [answered.items[place] for place in sorted(answered.order)]
        return replace(ActivationBatch.join(answered.parts, ranks), examples=self._records(items))

    def _records(self, items: Sequence[Prepared]) -> tuple[ExampleRecord, ...]:
        model = self._extractor.model
        return tuple(example_record(model, item, self._options) for item in items)

    def _described(self, whole: ActivationBatch, failures: list[ExampleFailure]) -> ActivationBatch:
        return replace(
            whole,
            token_ids=whole.token_ids if self._options.keep_text else np.zeros(0, dtype=np.int64),
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

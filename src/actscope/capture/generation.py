"""Answer the prompts of a unit, and take their activations on the way where the model allows it.

Live, the rows come from decoding itself. Replayed, the answers are made first and one
teacher-forced pass over prompt and answer follows. Either way row i is token i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from actscope.capture.oom import Limits, run_halving
from actscope.capture.prepare import Prepared
from actscope.core.activations import ActivationBatch, ExampleFailure
from actscope.core.batching import length_sorted_batches
from actscope.core.protocols import BackendModel, Generated, GenerationParams, Selection
from actscope.core.spec import UnitPlan

__all__ = ["Answered", "answer_all"]


@dataclass
class Answered:
    """The prompts of a unit with their answers.

    Attributes:
        items: With prompt and response rows, in the order of the prompts.
        lost: Those that do not fit memory even alone.
        halved: Sizes of batches that were halved.
        parts: The activations of each batch, live only.
        order: The place among ``items`` of each example of the parts.
        failures: Examples whose span holds no token, live only.
    """

    items: list[Prepared]
    lost: list[Prepared] = field(default_factory=list[Prepared])
    halved: list[int] = field(default_factory=list[int])
    parts: list[ActivationBatch] = field(default_factory=list[ActivationBatch])
    order: list[int] = field(default_factory=list[int])
    failures: list[ExampleFailure] = field(default_factory=list[ExampleFailure])

    def add(self, places: Sequence[int], answers: Sequence[Generated]) -> None:
        """The answers to the prompts at some places."""
        for place, one in zip(places, answers, strict=True):
            item = self.items[place]
            self.items[place] = replace(item, row=one.row, response=one.text, thought=one.thought)

    def take(self, places: Sequence[int], part: ActivationBatch) -> None:
        """The activations of one batch, its failures among those of the unit."""
        for failure in part.failures:
            index = self.items[places[failure.index]].index
            self.failures.append(replace(failure, index=index))
        if len(part):
            self.order += [places[record.index] for record in part.examples]
            self.parts.append(replace(part, failures=()))


def answer_all(  # noqa: PLR0913  (the worker that calls it keeps each of these)
    model: BackendModel,
    params: GenerationParams,
    items: Sequence[Prepared],
    plan: UnitPlan,
    between: Callable[[], None],
    *,
    limits: Limits,
    live: Selection | None = None,
    advanced: Callable[[int, int], None] = lambda examples, tokens: None,
) -> Answered:
    """Continue every prompt.

    Sampling is seeded by the seed and the example's id, so neither the batches nor a resume change
    a text.

    Args:
        model: A causal model.
        params: How to continue.
        items: The prompts.
        plan: Its batch limits; the budget counts the answer.
        between: Called between two batches; may raise to stop.
        limits: What memory was found to hold in this run.
        live: What to capture while decoding; None makes answers only.
        advanced: Told examples and tokens after each batch that was captured live.
    """
    lengths = [item.row.longest + params.max_new_tokens for item in items]
    batches = length_sorted_batches(
        lengths,
        batch_tokens=plan.batch_tokens,
        batch_size=plan.batch_size,
    )
    found = Answered(list(items))
    lost: set[int] = set()

    def run(places: Sequence[int]) -> tuple[list[Generated], ActivationBatch | None]:
        rows = [items[i].row for i in places]
        if live is None:
            return model.generate_rows(rows, params), None
        return model.generate_live(rows, params, live)

    for batch in batches:
        between()
        for places, made in run_halving(
            batch, run, found.halved.append, tokens=lengths.__getitem__, limits=limits
        ):
            if made is None:
                lost.update(places)
                continue
            answers, part = made
            found.add(places, answers)
            if part is not None:
                found.take(places, part)
                advanced(len(part), int(part.token_offsets[-1]))
    if live is None:
        found.items = [item for i, item in enumerate(found.items) if i not in lost]
    found.lost = [items[i] for i in sorted(lost)]
    return found

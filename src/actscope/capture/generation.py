"""Answers, and then one teacher-forced pass over prompt and answer together.

The pass that generates keeps nothing: its cached steps and its padding would make the rows depend
on batch mates. The replay gives row i = token i for prompt and response alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from actscope.capture.oom import run_halving
from actscope.capture.prepare import Prepared
from actscope.core.batching import length_sorted_batches
from actscope.core.protocols import BackendModel, Generated, GenerationParams
from actscope.core.spec import UnitPlan

__all__ = ["answer_all"]


def answer_all(
    model: BackendModel,
    params: GenerationParams,
    items: Sequence[Prepared],
    plan: UnitPlan,
    between: Callable[[], None],
) -> tuple[list[Prepared], list[Prepared], list[int]]:
    """Continue every prompt.

    Sampling is seeded by the seed and the example's id, so neither the batches nor a resume change
    a text.

    Args:
        model: A causal model.
        params: How to continue.
        items: The prompts.
        plan: Its batch limits; the budget counts the answer.
        between: Called between two batches; may raise to stop.

    Returns:
        The items with prompt and response rows, in order; those that did not fit memory even
        alone; and the sizes of batches that were halved.
    """
    batches = length_sorted_batches(
        [len(item.row) + params.max_new_tokens for item in items],
        batch_tokens=plan.batch_tokens,
        batch_size=plan.batch_size,
    )
    answered: dict[int, Prepared] = {}
    halved: list[int] = []

    def run(places: Sequence[int]) -> list[Generated]:
        return model.generate_rows([items[i].row for i in places], params)

    for batch in batches:
        between()
        for places, made in run_halving(batch, run, halved.append):
            for place, one in zip(places, made or [], strict=False):
                answered[place] = replace(items[place], row=one.row, response=one.text)
    done = [answered[i] for i in sorted(answered)]
    return done, [item for i, item in enumerate(items) if i not in answered], halved

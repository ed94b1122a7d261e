"""How many tokens a forward pass should hold on this machine: found by trying, where that pays.

Too few and a pass costs more than its tokens; too many and it falls out of the processor's caches,
or pads short texts to long ones. What is timed is the first block alone, on tokens of the dataset:
the others are alike, and a probe of the whole model would cost what it saves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from actscope.capture.extractor import ActivationExtractor
from actscope.capture.options import CaptureOptions
from actscope.capture.prepare import Prepared
from actscope.core.activations import Batch
from actscope.core.protocols import BackendModel, Selection
from actscope.core.sites import Site
from actscope.strategies import as_strategy

__all__ = ["choose_budget", "climb", "unit_tokens", "usual_budget"]

ACCELERATOR = 8192
"""Where the search begins there, and what is taken where there is nothing to search for."""
CPU_VALUES, CPU_LEAST, CPU_MOST = 5 << 16, 256, 1024
"""On a CPU that is so many tokens as make so many values of a residual: what a block holds at a
time then stays in the caches. It gives the fastest of 256, 512, 1024 and 2048 tokens for the four
models of 256, 512 and 768 values a token that were measured."""
ANSWERING = {"cpu": 8192, "accelerator": 32_768}
"""A step of decoding has one token a row: batches of answers are as wide as memory allows."""
UNIT_WORK = {"cpu": 1e13, "accelerator": 1e15}
"""Floating-point operations of a unit: some seconds of an accelerator, a minute or two of a CPU."""
LEAST_UNIT_TOKENS, MOST_UNIT_TOKENS = 4096, 65_536
SMALLEST, LARGEST = 128, 131_072
LARGEST_SHARE = 0.015
"""Of the run's work that the probe may cost."""
LARGEST_SECONDS = 5.0
ROUNDS, MOST_ROUNDS = 2, 5
"""The fastest of so many passes counts: whatever disturbs a pass makes it slower."""
CLEARLY = 0.95
"""Another budget is better only if a token takes at most so much of the time."""


def usual_budget(model: BackendModel, options: CaptureOptions) -> int:
    """The budget that is taken without a probe."""
    kind = _kind(model)
    if options.generation is not None:
        return ANSWERING[kind]
    if kind == "accelerator":
        return ACCELERATOR
    power = round(math.log2(CPU_VALUES / max(model.d_model, 1)))
    return min(max(2**power, CPU_LEAST), CPU_MOST)


def _kind(model: BackendModel) -> str:
    device = str(getattr(model, "device", "cpu")).partition(":")[0]
    return "cpu" if device == "cpu" else "accelerator"


def unit_tokens(model: BackendModel) -> float:
    """Tokens that a unit of work puts through the model.

    What is lost when a run is killed is one unit, so a large model gets fewer; but what a batch is
    put together from is one unit too, and of fewer texts fewer are alike in length: units of 128
    texts instead of 512 have 3 to 4 % more padding. Weights of a block count as ``12 d_model^2``,
    each in one multiplication and one addition a token.
    """
    per_token = 24 * max(model.n_layers, 1) * max(model.d_model, 1) ** 2
    return min(max(UNIT_WORK[_kind(model)] / per_token, LEAST_UNIT_TOKENS), MOST_UNIT_TOKENS)


def choose_budget(
    extractor: ActivationExtractor,
    items: Sequence[Prepared],
    options: CaptureOptions,
    examples: int,
) -> int:
    """The token budget of a new run.

    Args:
        extractor: What will be captured.
        items: Examples of the dataset.
        options: Of the run; where answers are generated nothing is tried.
        examples: How many examples the run has, which bounds what may be spent.

    Returns:
        Padded tokens of a batch: a power of two.
    """
    model, first = extractor.model, Site("resid_post", 0)
    usual = usual_budget(model, options)
    status = model.sites().get(first)
    if options.generation is not None or not items or status is None or not status.verified:
        return usual
    lengths = sorted(item.row.longest for item in items)
    depth = max([site.layer + 1 for site in extractor.sites if site.layer is not None] or [1])
    work = examples * sum(lengths) / len(lengths) * depth
    middle = sorted(items, key=lambda item: item.row.longest)[len(items) // 2].row
    with model.open(Selection((first,), as_strategy("last"))) as session:

        def timed(tokens: int) -> float:
            batch = Batch((middle,) * max(tokens // middle.longest, 1))
            began = time.perf_counter()
            session.run(batch)
            return (time.perf_counter() - began) / (len(batch.rows) * middle.longest)

        return climb(usual, timed, allowed=int(work * LARGEST_SHARE), shortest=middle.longest)


def climb(start: int, timed: Callable[[int], float], *, allowed: int, shortest: int) -> int:
    """The budget whose tokens take least time, by trying neighbours from ``start`` on.

    Args:
        start: Where to begin, a power of two.
        timed: Seconds a token takes in a batch of so many.
        allowed: Tokens that may be spent.
        shortest: A smaller budget than one text is no other budget.
    """
    spent, until = 0, time.perf_counter() + LARGEST_SECONDS
    known: dict[int, float] = {}

    def afford(*budgets: int) -> bool:
        cost = ROUNDS * sum(budgets)
        return spent + cost <= allowed and time.perf_counter() < until

    def measure(*budgets: int) -> None:
        nonlocal spent
        rounds = min(max(ROUNDS, (allowed - spent) // (2 * sum(budgets))), MOST_ROUNDS)
        spent += rounds * sum(budgets)
        taken = [[timed(budget) for budget in budgets] for _ in range(rounds)]
        for place, budget in enumerate(budgets):
            known[budget] = min(one[place] for one in taken)

    spent = start
    if not afford(start, 2 * start):
        return start
    timed(start)  # the first pass of a model is slower than any later one
    measure(start, 2 * start)
    best, factor = start, 2
    if known[2 * start] > CLEARLY * known[start]:
        factor = 0.5
    while True:
        further = int(best * factor)
        if not max(SMALLEST, shortest) <= further <= LARGEST:
            return best
        if further not in known:
            if not afford(further):
                return best
            measure(further)
        if known[further] > CLEARLY * known[best]:
            return best
        best = further

"""How many tokens and bytes a range of a dataset comes to."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from actscope.capture.batches import batches_of
from actscope.capture.extractor import ActivationExtractor
from actscope.capture.options import CaptureOptions
from actscope.capture.plan import Footprint
from actscope.capture.prepare import Prepared, example_record, prepare
from actscope.core.activations import Batch, TokenRow
from actscope.core.arrays import dtype_name
from actscope.core.batching import length_sorted_batches, padding_of
from actscope.core.coding import coded_share
from actscope.core.errors import ExampleError
from actscope.core.protocols import Source
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan
from actscope.core.spelling import ROLES, Spelling
from actscope.core.text import RESPONSE, THINK, Span
from actscope.selectors import select

__all__ = [
    "Counts",
    "RowCost",
    "count",
    "mean_footprint",
    "measure_rows",
    "rows_at_most",
    "sample",
    "with_answer",
]

SAMPLE = 32
ID_BYTES, PHASE_BYTES, POSITION_BYTES = 8, 1, 4
OFFSET_BYTES = 16  # of rows and of tokens
PAIR_BYTES = 8  # of query-key pairs, where there are patterns
ANSWER_BYTES = 8  # of text for one generated token, about


@dataclass(frozen=True)
class RowCost:
    """Bytes of one row of each site.

    Attributes:
        per_row: Sites with one row a kept token.
        per_example: Sites with one row an example.
        per_pair: Sites with one value a head for every kept token and every token it may look at.
        dtypes: dtype on disk of each site.
        pooled: Whether a strategy made one row an example of every site.
        shares: Bytes on disk of a byte of a site, where a codec makes them fewer.
    """

    per_row: Mapping[Site, int]
    per_example: Mapping[Site, int]
    per_pair: Mapping[Site, int]
    dtypes: Mapping[Site, str]
    pooled: bool
    shares: Mapping[Site, float] = field(default_factory=dict[Site, float])


@dataclass
class Counts:
    """What a range holds.

    Attributes:
        examples: Examples that can be captured, each sample of a prompt by itself.
        tokens: Their tokens, prompt and (at most) response.
        rows: Kept tokens.
        pairs: Kept tokens times the tokens of their example.
        units: Units they make.
        record_bytes: Bytes of the examples' records: ids, texts, metadata.
        padding: Tokens of padding in the batches they make, those that share beginnings left aside.
        alone: Examples longer than the budget, each in a batch of its own.
        shared: Tokens of beginnings that examples share and that are computed once.
        saved: How many of these need not be computed again.
        failures: Number of examples that cannot be captured, by kind.
    """

    examples: int = 0
    tokens: int = 0
    rows: int = 0
    pairs: int = 0
    units: int = 0
    record_bytes: int = 0
    padding: int = 0
    alone: int = 0
    shared: int = 0
    saved: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])

    def bytes_by_site(self, cost: RowCost) -> dict[Site, int]:
        """Bytes of each site's array on disk; what zstd may save is not counted."""
        counted = (
            (cost.per_row, self.rows),
            (cost.per_example, self.examples),
            (cost.per_pair, self.pairs),
        )
        return {
            site: math.ceil(size * count * cost.shares.get(site, 1.0))
            for sizes, count in counted
            for site, size in sizes.items()
        }

    def table_bytes(self, cost: RowCost, *, keep_text: bool) -> int:
        """Bytes of records, token ids, phases, positions and offsets."""
        per_token = PHASE_BYTES + (ID_BYTES if keep_text else 0)
        positions = 0 if cost.pooled else self.rows * POSITION_BYTES
        offsets = (self.examples + self.units) * (OFFSET_BYTES + PAIR_BYTES * bool(cost.per_pair))
        return self.record_bytes + self.tokens * per_token + positions + offsets

    def scaled(self, factor: float) -> Counts:
        """The same for so many times as many examples."""
        return Counts(
            int(self.examples * factor),
            int(self.tokens * factor),
            int(self.rows * factor),
            int(self.pairs * factor),
            int(self.units * factor),
            int(self.record_bytes * factor),
            int(self.padding * factor),
            int(self.alone * factor),
            int(self.shared * factor),
            int(self.saved * factor),
        )


def with_answer(row: TokenRow, options: CaptureOptions, span: Span) -> TokenRow:
    """The row with the longest answer that may follow it, for counting and timing.

    Where the span is reasoning, the whole answer is taken for it.
    """
    if options.generation is None:
        return row
    n = options.generation.max_new_tokens
    phase = THINK if span.kind == "think" else RESPONSE
    spelling = row.spelling
    return replace(
        row,
        token_ids=np.concatenate([row.token_ids, np.repeat(row.token_ids[-1:], n)]),
        phase=np.concatenate([row.phase, np.full(n, phase, np.uint8)]),
        special=np.concatenate([row.special, np.zeros(n, np.bool_)]),
        spelling=None if spelling is None else cache(lambda: _spelled_on(spelling(), n)),
    )


def _spelled_on(prompt: Spelling, n: int) -> Spelling:
    """With an answer of so many tokens that spell nothing yet."""
    role = 0 if prompt.no_roles else ROLES.index("assistant")
    return prompt.extended("", np.zeros((n, 2), np.int64), np.full(n, role))


def rows_at_most(row: TokenRow, options: CaptureOptions, span: Span) -> int:
    """Kept tokens of a row with its longest answer; every token of an answer may match a text.

    Raises:
        ExampleError: there can be none.
    """
    answer = options.generation.max_new_tokens if options.generation else 0
    whole = with_answer(row, options, span)
    if span.kind != "match" or not answer:
        return len(select(whole, span))
    try:
        return len(select(whole, span)) + answer
    except ExampleError as error:
        if error.kind != "empty_span":
            raise
        return answer


def sample(
    extractor: ActivationExtractor, source: Source, options: CaptureOptions
) -> list[Prepared]:
    """The first examples of the dataset that can be captured, whatever the range.

    Taken from the dataset's beginning, so that runs over different ranges are cut alike.
    """
    found: list[Prepared] = []
    for index, example in enumerate(source.examples(0, min(SAMPLE, len(source)))):
        try:
            item = prepare(extractor.model, options, example, index)
            rows_at_most(item.row, options, extractor.selection.span)
        except ExampleError:
            continue
        found.append(item)
    return found


def measure_rows(
    extractor: ActivationExtractor, items: Sequence[Prepared], options: CaptureOptions, bf16: bool
) -> RowCost:
    """Run the shortest of some examples and look at what comes out.

    Args:
        extractor: What is captured.
        items: Examples to choose from; none of them costs nothing.
        options: For the storage dtype and the answer.
        bf16: Whether the store keeps bfloat16.
    """
    per_row: dict[Site, int] = {}
    per_example: dict[Site, int] = {}
    per_pair: dict[Site, int] = {}
    dtypes: dict[Site, str] = {}
    shares: dict[Site, float] = {}
    if items:
        shortest = min(items, key=lambda item: len(item.row))
        if options.generation is not None:  # a model that cannot answer says so here
            one = replace(options.generation, max_new_tokens=1, n=1)
            extractor.model.generate_rows([shortest.row], one)
        every = replace(extractor.selection, span=Span())
        with extractor.model.open(every) as session:
            batch = session.run(Batch((with_answer(shortest.row, options, every.span),)))
        for site, array in batch.arrays.items():
            pooled = batch.is_pooled(site)
            computed = dtype_name(array.dtype)
            dtypes[site] = stored_dtype(computed, options.storage_dtype, bf16, pooled=pooled)
            shares[site] = coded_share(options.codec, dtypes[site], array.shape[-1])
            size = {"float16": 2, "bfloat16": 2, "float64": 8}.get(dtypes[site], 4)
            if site.layout == "blocks":
                per_pair[site] = size * batch.heads[site]
            else:
                (per_example if pooled else per_row)[site] = size * array.shape[-1]
    return RowCost(per_row, per_example, per_pair, dtypes, extractor.strategy.pools, shares)


def stored_dtype(computed: str, asked: str, bf16: bool, *, pooled: bool) -> str:
    """The dtype on disk of what was computed; one row an example is float32 or float16."""
    if pooled:
        return "float16" if asked == "float16" else "float32"
    if asked != "native":
        return asked
    return "float32" if computed == "bfloat16" and not bf16 else computed


def mean_footprint(
    extractor: ActivationExtractor,
    items: Sequence[Prepared],
    options: CaptureOptions,
    cost: RowCost,
) -> Footprint:
    """The mean cost of some examples; a token that must be generated counts as four."""
    if not items:
        return Footprint(1, 1)
    span = extractor.selection.span
    rows = [(rows_at_most(item.row, options, span), len(item.row)) for item in items]
    answer = options.generation.max_new_tokens if options.generation else 0
    samples = options.generation.n if options.generation else 1
    kept = sum(n for n, _ in rows) / len(rows)
    pairs = sum(n * (length + answer) for n, length in rows) / len(rows)
    tokens = sum(length for _, length in rows) / len(rows) + 4 * answer
    size = kept * sum(cost.per_row.values()) + pairs * sum(cost.per_pair.values())
    size += sum(cost.per_example.values())
    return Footprint(samples * tokens, samples * size)


def count(
    extractor: ActivationExtractor,
    source: Source,
    options: CaptureOptions,
    ranges: Iterable[tuple[int, int]],
    plan: UnitPlan,
) -> Counts:
    """Tokenise units and count.

    Args:
        extractor: What is captured.
        source: The dataset.
        options: What is done to its examples.
        ranges: The units.
        plan: How they are cut into batches.

    Raises:
        ExampleError: a prompt is too long and the policy is ``error``.
    """
    total = Counts()
    span = extractor.selection.span
    answer = options.generation.max_new_tokens if options.generation else 0
    samples = options.generation.n if options.generation else 1
    for start, stop in ranges:
        total.units += 1
        lengths: list[int] = []
        texts: list[TokenRow] = []
        for index, example in enumerate(source.examples(start, stop), start):
            try:
                item = prepare(extractor.model, options, example, index)
                rows = rows_at_most(item.row, options, span)
            except ExampleError as error:
                if error.kind == "too_long" and options.on_too_long == "error":
                    raise
                total.failures[error.kind] += 1
                continue
            lengths += [item.row.longest + answer] * samples
            texts.append(item.row)
            total.examples += samples
            total.tokens += samples * (len(item.row) + answer)
            total.rows += samples * rows
            total.pairs += samples * rows * (len(item.row) + answer)
            total.record_bytes += samples * _record_bytes(extractor, item, options)
        _count_batches(total, lengths, texts, plan)
    return total


def _count_batches(
    total: Counts, lengths: Sequence[int], texts: Sequence[TokenRow], plan: UnitPlan
) -> None:
    """Add what the batches of a unit come to; where beginnings are shared there are no answers."""
    plain: list[Sequence[int]] = []
    if plan.share_prefix:
        for batch in batches_of(texts, plan):
            if not batch.beginnings:
                plain.append(batch.places)
                continue
            once = {texts[i].token_ids[:n].tobytes(): n for i, n in batch.beginnings.items()}
            shared = sum(batch.beginnings.values())
            total.shared += shared
            total.saved += shared - sum(once.values())
    else:
        plain += length_sorted_batches(
            lengths,
            batch_tokens=plan.batch_tokens,
            batch_size=plan.batch_size,
            pass_tokens=plan.pass_tokens,
        )
    total.padding += padding_of(lengths, plain)
    if plan.batch_tokens is not None:  # what is longer goes alone
        total.alone += sum(lengths[places[0]] > plan.batch_tokens for places in plain)


def _record_bytes(extractor: ActivationExtractor, item: Prepared, options: CaptureOptions) -> int:
    record = example_record(extractor.model, item, options)
    answer = options.generation.max_new_tokens * ANSWER_BYTES if options.generation else 0
    return len(json.dumps(record.to_json())) + 1 + (answer if options.keep_text else 0)

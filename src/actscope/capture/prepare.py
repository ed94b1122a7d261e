"""From examples to the token rows that will run, with every exception on record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actscope.capture.options import CaptureOptions
from actscope.core.activations import ExampleFailure, ExampleRecord, TokenRow
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.protocols import BackendModel
from actscope.core.text import PROMPT, Example

__all__ = ["Prepared", "example_record", "prepare", "prepare_all", "prompt_limit", "truncated"]


@dataclass(frozen=True)
class Prepared:
    """An example ready to run.

    Attributes:
        index: Its place in the whole dataset.
        example: What came from the source.
        row: Its tokens.
        note: What was done to it.
        response: The generated answer, once there is one.
        thought: The reasoning before it.
    """

    index: int
    example: Example
    row: TokenRow
    note: str = ""
    response: str | None = None
    thought: str | None = None


def prompt_limit(model: BackendModel, options: CaptureOptions) -> int | None:
    """The longest prompt in tokens: what was asked for, within the context less the answer.

    Raises:
        BadInputError: the answer leaves no room for a prompt.
    """
    room = model.context_length
    if room is not None and options.generation is not None:
        room -= options.generation.max_new_tokens
        if room < 1:
            raise BadInputError(
                f"{options.generation.max_new_tokens} new tokens leave no room in a context of "
                f"{model.context_length}",
                next_step="ask for a shorter answer",
            )
    known = [limit for limit in (options.max_length, room) if limit is not None]
    return min(known) if known else None


def _limit_in_words(model: BackendModel, options: CaptureOptions, limit: int) -> str:
    """The limit, and what lowered it where that is the answer."""
    answer = options.generation.max_new_tokens if options.generation else 0
    if not answer or model.context_length is None or limit == options.max_length:
        return str(limit)
    return f"{limit}: {answer} new tokens take the rest of a context of {model.context_length}"


def prepare_all(
    model: BackendModel, options: CaptureOptions, examples: Sequence[Example], start: int
) -> tuple[list[Prepared], list[ExampleFailure]]:
    """Encode the examples of a unit.

    Raises:
        ExampleError: one is too long and the policy is ``error``.
    """
    ready: list[Prepared] = []
    failures: list[ExampleFailure] = []
    for index, example in enumerate(examples, start):
        try:
            ready.append(prepare(model, options, example, index))
        except ExampleError as error:
            if error.kind == "too_long" and options.on_too_long == "error":
                raise
            failures.append(ExampleFailure(example.id, index, error.kind, error.what))
    return ready, failures


def prepare(model: BackendModel, options: CaptureOptions, example: Example, index: int) -> Prepared:
    """Encode one example and apply the policy for long prompts.

    Raises:
        ExampleError: it has no tokens, or too many.
    """
    row = model.encode(example, chat=options.chat)
    if not len(row):
        raise ExampleError("no_tokens", f"example {example.id!r} has no tokens")
    limit = prompt_limit(model, options)
    if limit is None or row.longest <= limit:
        return Prepared(index, example, row)
    if options.on_too_long in ("error", "skip") or row.encoder_ids is not None:
        raise ExampleError(
            "too_long",
            f"example {example.id!r} has {row.longest} tokens; the limit is "
            + _limit_in_words(model, options, limit),
            next_step="--on-too-long skip goes on without it; truncate-left and truncate-right "
            "shorten it",
        )
    side = options.on_too_long.removeprefix("truncate-")
    return Prepared(
        index,
        example,
        truncated(row, limit, side),
        note=f"truncated {len(row) - limit} tokens on the {side}",
    )


def truncated(row: TokenRow, limit: int, side: str) -> TokenRow:
    """Drop tokens on one side; the special tokens at the row's two ends stay.

    A decoder without its BOS, or a chat without its last template mark, is another prompt
    altogether, not a shorter one.
    """
    head, tail = _special_ends(row.special)
    if head + tail >= limit:  # nothing but marks would be left: cut plainly
        head = tail = 0
    over = len(row) - limit
    cut = slice(head, head + over) if side == "left" else slice(-tail - over, len(row) - tail)
    keep = np.ones(len(row), dtype=np.bool_)
    keep[cut] = False
    return row.take(keep)


def _special_ends(special: Array) -> tuple[int, int]:
    ordinary = np.flatnonzero(~special)
    if not ordinary.size:
        return 0, 0
    return int(ordinary[0]), len(special) - 1 - int(ordinary[-1])


def example_record(model: BackendModel, item: Prepared, options: CaptureOptions) -> ExampleRecord:
    """What the store keeps about an example; without text, only numbers and booleans of it."""
    prompt_tokens = int((item.row.phase == PROMPT).sum())
    metadata = dict(item.example.metadata)
    if not options.keep_text:
        plain = (bool, int, float, type(None))
        metadata = {k: v for k, v in metadata.items() if isinstance(v, plain)}
    return ExampleRecord(
        id=item.row.id,
        index=item.index,
        n_tokens=len(item.row),
        n_prompt_tokens=prompt_tokens,
        text=_prompt_text(model, item, options, prompt_tokens) if options.keep_text else None,
        response=item.response if options.keep_text else None,
        thought=item.thought if options.keep_text else None,
        metadata=metadata,
        note=item.note,
    )


def _prompt_text(
    model: BackendModel, item: Prepared, options: CaptureOptions, prompt_tokens: int
) -> str | None:
    """The prompt as it was tokenised: the given text, or what the tokens spell."""
    plain = item.example.text is not None and not options.chat and not item.note
    if plain or model.tokenizer is None:
        return item.example.text
    ids = item.row.token_ids[:prompt_tokens].tolist()
    return str(model.tokenizer.decode(ids, skip_special_tokens=False))

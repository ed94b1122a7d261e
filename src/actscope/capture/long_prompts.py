"""Find a prompt over the limit before the first unit is captured, without tokenising them all."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from actscope.capture.options import CaptureOptions
from actscope.capture.prepare import prepare, prompt_limit
from actscope.core.errors import ExampleError
from actscope.core.protocols import BackendModel, Source
from actscope.core.text import Example

__all__ = ["MARGIN", "may_exceed", "refuse_too_long"]

MARGIN = 32
"""More special tokens than any tokenizer puts around a text of its own accord."""


def refuse_too_long(
    model: BackendModel,
    options: CaptureOptions,
    source: Source,
    ranges: Iterable[tuple[int, int]],
) -> None:
    """Look through ranges of a dataset; other failures are left for the capture to record.

    Raises:
        ExampleError: the first prompt over the limit, where the policy is ``error``.
    """
    limit = prompt_limit(model, options)
    if limit is None or options.on_too_long != "error":
        return
    for start, stop in _joined(ranges):
        for index, example in enumerate(source.examples(start, stop), start):
            if not may_exceed(example, limit, chat=options.chat):
                continue
            try:
                prepare(model, options, example, index)
            except ExampleError as error:
                if error.kind == "too_long":
                    raise


def may_exceed(example: Example, limit: int, *, chat: bool) -> bool:
    """Whether an example can have more tokens than that; no is certain, yes is not.

    A token of a text holds at least one byte of it, as it is or as the tokenizer unfolds it. What
    a chat template adds is known only once it has.
    """
    if example.token_ids is not None:
        return len(example.token_ids) > limit
    if example.text is None or chat:
        return True
    return _most_tokens(example.text) > limit - MARGIN


def _most_tokens(text: str) -> int:
    if text.isascii():
        return len(text)
    unfolded = unicodedata.normalize("NFKD", text)
    return max(len(form.encode("utf-8", "surrogatepass")) for form in (text, unfolded))


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring ranges as one, so that a source is read in long strokes."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined

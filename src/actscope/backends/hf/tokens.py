"""From texts and conversations to token rows, with exactly one BOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from numbers import Integral
from typing import Any, cast

import numpy as np

from actscope.backends.hf.roles import content_ranges
from actscope.backends.hf.unfolding import are_special, offsets_of_ids
from actscope.core.activations import TokenRow
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.spelling import Spelling
from actscope.core.text import PROMPT, Example, Message, Span

__all__ = ["check_text_span", "encode_example", "render_chat", "single_token"]


def encode_example(tokenizer: Any, example: Example, *, chat: bool, vocab_size: int) -> TokenRow:
    """Tokens of one example.

    Text gets the tokenizer's own special tokens, once; a chat template writes its own, so its text
    is tokenised without adding any.

    Args:
        tokenizer: A Hugging Face tokenizer, or None for ready token ids only.
        example: The prompt.
        chat: Whether plain text becomes one user turn of the chat template.
        vocab_size: Rows of the model's embedding.

    Raises:
        BadInputError: text without a tokenizer, or a conversation without a chat template.
        ExampleError: this one example cannot be tokenised.
    """
    if example.token_ids is not None:
        if chat:
            raise BadInputError(
                f"example {example.id!r} is token ids, which no chat template is put around",
                next_step="pass texts or messages, or leave chat (--chat) out",
            )
        return _from_ids(tokenizer, example, vocab_size)
    if tokenizer is None:
        raise BadInputError(
            f"example {example.id!r} is text, but the model has no tokenizer",
            next_step="save a tokenizer in the model's folder, wrap_model(hf_model, tokenizer), or "
            "pass token ids",
        )
    if example.messages is not None or chat:
        turns = example.messages or (Message("user", example.text or ""),)
        text = render_chat(tokenizer, turns, example.id)
        ids = _ids_of(tokenizer, text, example.id, special=False)
        spelling = cache(lambda: _spelled_chat(tokenizer, example.id, turns, text, ids))
    else:
        text = example.text or ""
        ids = _ids_of(tokenizer, text, example.id, special=True)
        bos = getattr(tokenizer, "bos_token_id", None)
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the text itself began with the BOS token
        spelling = cache(lambda: _spelled_text(tokenizer, example.id, text, ids))
    if not ids:
        raise ExampleError("no_tokens", f"example {example.id!r} has no tokens")
    return replace(_row(tokenizer, example.id, ids), spelling=spelling)


def check_text_span(tokenizer: Any, span: Span) -> None:
    """Refuse a span that asks what tokens spell where the tokenizer does not say.

    Raises:
        BadInputError: there is no tokenizer, or one that gives no offsets.
    """
    if not span.needs_text or getattr(tokenizer, "is_fast", False):
        return
    raise BadInputError(
        f"the span {span} needs a tokenizer that says which characters each token spells",
        got="no tokenizer" if tokenizer is None else f"{type(tokenizer).__name__}, without offsets",
        next_step="load the fast tokenizer (a tokenizer.json beside the model; "
        "wrap_model(hf_model, fast_tokenizer)), or choose a span that counts tokens: "
        "all, prompt, response, answer, last:K, START:END",
    )


def _spelled_text(tokenizer: Any, identity: str, text: str, ids: list[int]) -> Spelling:
    offsets = _offsets(tokenizer, identity, text, ids, special=True)
    roles = np.zeros(len(ids), np.uint8)
    return Spelling(text, offsets, roles, "it is a plain text, not a conversation")


def _spelled_chat(
    tokenizer: Any, identity: str, turns: Sequence[Message], text: str, ids: list[int]
) -> Spelling:
    offsets = _offsets(tokenizer, identity, text, ids, special=False)
    plain = Spelling(text, offsets, np.zeros(len(ids), np.uint8))
    try:
        ranges = content_ranges(turns, text, lambda t: render_chat(tokenizer, t, identity))
    except ExampleError as error:
        return replace(plain, no_roles=error.what)
    roles = plain.roles.copy()
    for start, end, role in ranges:
        roles[plain.overlapping(start, end)] = role
    return replace(plain, roles=roles)


def _spelled_ids(tokenizer: Any, ids: list[int]) -> Spelling:
    text, offsets = offsets_of_ids(tokenizer, ids)
    roles = np.zeros(len(ids), np.uint8)
    return Spelling(text, offsets, roles, "it is token ids, not a conversation")


def _offsets(tokenizer: Any, identity: str, text: str, ids: list[int], *, special: bool) -> Array:
    """Which characters each token spells, ``[L, 2]``.

    Raises:
        ExampleError: the tokenizer gives no offsets, or none for exactly these tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ExampleError(
            "no_text",
            f"example {identity!r}: {type(tokenizer).__name__} gives no offsets",
            next_step="load the fast tokenizer, or choose a span that counts tokens",
        )
    encoded = tokenizer(
        text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
    )
    extra = len(encoded["input_ids"]) - len(ids)  # a BOS that was dropped
    if list(encoded["input_ids"][extra:]) != ids:
        raise ExampleError("no_text", f"example {identity!r} is not tokenised the same way twice")
    return np.array(encoded["offset_mapping"][extra:], dtype=np.int64).reshape(-1, 2)


def render_chat(tokenizer: Any, messages: Sequence[Message], identity: str) -> str:
    """The conversation as the model's template writes it.

    It ends where the assistant is to answer, unless the assistant spoke last.

    Raises:
        BadInputError: the tokenizer has no chat template.
        ExampleError: the template refuses this conversation, such as its system turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadInputError(
            "the tokenizer has no chat template",
            next_step="pass plain text instead of messages, without chat (--chat)",
        )
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=turns[-1]["role"] != "assistant"
        )
    except Exception as error:  # templates raise whatever they like, from inside jinja
        raise ExampleError(
            "chat_template", f"the chat template refuses example {identity!r}: {error}"
        ) from error


def _ids_of(tokenizer: Any, text: str, identity: str, *, special: bool) -> list[int]:
    try:
        encoded = tokenizer(text, add_special_tokens=special, verbose=False)
    except (UnicodeEncodeError, TypeError) as error:
        raise ExampleError(
            "bad_text", f"example {identity!r} holds text that is no valid Unicode: {error}"
        ) from error
    return [int(i) for i in encoded["input_ids"]]


def _from_ids(tokenizer: Any, example: Example, vocab_size: int) -> TokenRow:
    ids = list(example.token_ids or ())
    if not ids:
        raise ExampleError("no_tokens", f"example {example.id!r} has no tokens")
    wrong = [i for i in ids if not 0 <= i < vocab_size]
    if wrong:
        raise ExampleError(
            "bad_token",
            f"example {example.id!r} has token id {wrong[0]}; the vocabulary has {vocab_size}",
        )
    row = _row(tokenizer, example.id, ids)
    if tokenizer is None:
        return row
    return replace(row, spelling=cache(lambda: _spelled_ids(tokenizer, ids)))


def single_token(tokenizer: Any, token: int | str, vocab_size: int) -> int:
    """The id of a token given by its id or its text.

    Raises:
        BadInputError: no such token, or a text that is not one token.
    """
    if isinstance(token, str):
        if tokenizer is None:
            raise BadInputError("a token by its text needs a tokenizer", next_step="pass its id")
        ids = [int(i) for i in tokenizer(token, add_special_tokens=False)["input_ids"]]
        if len(ids) != 1:
            raise BadInputError(
                f"{token!r} is not one token",
                got=str(tokenizer.convert_ids_to_tokens(ids)),
                next_step="pass a text of one token (mind the space before a word) or a token id",
            )
        token = ids[0]
    whole = isinstance(cast("object", token), Integral) and not isinstance(token, bool)
    if not whole or not 0 <= int(token) < vocab_size:
        raise BadInputError("no such token id", got=token, expected=f"0 to {vocab_size - 1}")
    return int(token)


def _row(tokenizer: Any, identity: str, ids: list[int]) -> TokenRow:
    array = np.asarray(ids, dtype=np.int64)
    phase = np.full(len(ids), PROMPT, dtype=np.uint8)
    return TokenRow(identity, array, phase, are_special(tokenizer, array))

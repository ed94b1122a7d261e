"""From texts and conversations to token rows, with exactly one BOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.text import PROMPT, Example, Message

__all__ = ["encode_example", "render_chat", "single_token"]


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
    else:
        text = example.text or ""
        ids = _ids_of(tokenizer, text, example.id, special=True)
        bos = getattr(tokenizer, "bos_token_id", None)
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]  # the text itself began with the BOS token
    if not ids:
        raise ExampleError("no_tokens", f"example {example.id!r} has no tokens")
    return _row(tokenizer, example.id, ids)


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
    return _row(tokenizer, example.id, ids)


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
    if isinstance(token, bool) or not 0 <= int(token) < vocab_size:
        raise BadInputError("no such token id", got=token, expected=f"0 to {vocab_size - 1}")
    return int(token)


def _row(tokenizer: Any, identity: str, ids: list[int]) -> TokenRow:
    marks = np.asarray(getattr(tokenizer, "all_special_ids", None) or [], dtype=np.int64)
    array = np.asarray(ids, dtype=np.int64)
    phase = np.full(len(ids), PROMPT, dtype=np.uint8)
    return TokenRow(identity, array, phase, np.isin(array, marks))

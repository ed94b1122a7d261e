"""From an example to the body of a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from actscope.core.errors import BadInputError, ExampleError
from actscope.core.protocols import GenerationParams
from actscope.core.text import Example

__all__ = ["check_sendable", "request_body", "request_seed"]


def request_seed(seed: int, example_id: str) -> int:
    """A seed of an example's own, 0 to 2^31 - 1, whatever its position and its neighbours."""
    digest = hashlib.sha256(f"{seed}\0{example_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def request_body(
    example: Example,
    model: str,
    params: GenerationParams,
    *,
    chat: bool,
    further: Mapping[str, Any],
) -> bytes:
    """JSON of one request.

    Args:
        example: Text, a conversation, or token ids (completions only).
        model: The model's name on the server.
        params: Length and sampling; ``top_k`` is sent only where it is not 0, OpenAI's own servers
            do not know it.
        chat: Chat completions, or plain completions.
        further: Fields that replace or join ours; None takes a field out.

    Raises:
        ExampleError: the example has no form that the server takes.
    """
    body: dict[str, Any] = {
        "model": model,
        **(_conversation(example) if chat else _prompt(example)),
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": request_seed(params.seed, example.id),
        "stream": False,
    }
    if params.top_k:
        body["top_k"] = params.top_k
    body |= further
    body = {key: value for key, value in body.items() if value is not None}
    return json.dumps(body).encode("ascii")


def check_sendable(params: GenerationParams, further: Mapping[str, Any]) -> None:
    """What is wrong with every request is said before the first one.

    Raises:
        BadInputError: a value that JSON cannot hold, or a length that means nothing.
    """
    if params.max_new_tokens < 1:
        raise BadInputError("max_new_tokens must be at least 1", got=params.max_new_tokens)
    try:
        json.dumps([vars(params), dict(further)], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInputError(
            "a parameter cannot be sent as JSON",
            got=str(error),
            expected="finite numbers, texts, lists and dictionaries",
        ) from error


def _conversation(example: Example) -> dict[str, Any]:
    if example.messages is not None:
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        return {"messages": turns}
    if example.text is not None:
        return {"messages": [{"role": "user", "content": example.text}]}
    raise ExampleError("bad_prompt", "token ids cannot be sent to chat completions")


def _prompt(example: Example) -> dict[str, Any]:
    if example.text is not None:
        return {"prompt": example.text}
    if example.token_ids is not None:
        return {"prompt": list(example.token_ids)}
    raise ExampleError("bad_prompt", "a conversation cannot be sent to plain completions")

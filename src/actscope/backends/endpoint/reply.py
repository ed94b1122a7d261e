"""What a server answered: read from the body of a reply, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["BadReplyError", "EndpointText", "Reply", "read_reply", "split_thinking"]

_OPEN, _CLOSE = "<think>", "</think>"
_REASONING_FIELDS = ("reasoning_content", "reasoning")


class BadReplyError(Exception):
    """The body is no answer. ``kind`` is ``bad_reply`` or ``no_text``."""

    def __init__(self, kind: str, what: str) -> None:
        self.kind = kind
        super().__init__(what)


@dataclass(frozen=True)
class Reply:
    """The parts of an answer.

    Attributes:
        text: The answer, without the reasoning before it.
        reasoning: What the model thought first; empty where it did not, or where it stays hidden.
        content: The answer as the server sent it, tags included: what a replay needs.
        finish_reason: ``stop``, ``length``, ... as the server says.
        model: Which model the server says has answered.
        reply_id: The server's own id of the reply; servers differ in whether it is unique.
        prompt_tokens: As the server counts, or None.
        completion_tokens: As the server counts, or None.
        token_ids: Ids of the answer where the server sends them, else None.
        prompt_token_ids: Ids of the prompt where the server sends them, else None.
    """

    text: str
    reasoning: str
    content: str
    finish_reason: str | None
    model: str | None
    reply_id: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    token_ids: tuple[int, ...] | None
    prompt_token_ids: tuple[int, ...] | None


@dataclass(frozen=True)
class EndpointText(Reply):
    """The answer to one prompt.

    Attributes:
        id: The example's id.
        index: Its position among the prompts.
        seed: The seed that was sent.
        attempts: Requests that were made, the successful one included.
        seconds: Time of the successful request.
    """

    id: str
    index: int
    seed: int
    attempts: int
    seconds: float


def split_thinking(content: str) -> tuple[str, str]:
    """(reasoning, answer) of a text in which a model may have thought aloud first.

    ``<think>a</think>b`` gives ``("a", "b")``. Templates that open the tag themselves leave
    ``a</think>b``, with the same result. A tag that is never closed means that the budget ended
    while the model was thinking: all is reasoning. Tags further inside an answer stay in it.
    """
    stripped = content.lstrip()
    before, closed, after = stripped.partition(_CLOSE)
    if stripped.startswith(_OPEN):
        reasoning = before.removeprefix(_OPEN).strip()
        return reasoning, after.lstrip() if closed else ""
    if closed and _OPEN not in before:
        return before.strip(), after.lstrip()
    return "", content


def read_reply(body: bytes, content_type: str) -> Reply:
    """Read the body of a reply with status 200.

    Raises:
        BadReplyError: it is no JSON, holds no choice, or holds neither text nor reasoning.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadReplyError("bad_reply", _not_json(body, content_type, error)) from error
    if not isinstance(data, dict):
        raise BadReplyError("bad_reply", f"the reply is a JSON {type(data).__name__}, no object")
    answer = cast("dict[str, Any]", data)
    if answer.get("error"):
        raise BadReplyError("bad_reply", f"the server reports: {_short(answer['error'])}")
    choice = _choice(answer)
    content, reasoning = _content(choice)
    if not reasoning:
        reasoning, text = split_thinking(content)
    else:
        text = content
    usage = _mapping(answer.get("usage"))
    return Reply(
        text=text,
        reasoning=reasoning,
        content=content,
        finish_reason=_text(choice.get("finish_reason")),
        model=_text(answer.get("model")),
        reply_id=_text(answer.get("id")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        token_ids=_ids(choice.get("token_ids")),
        prompt_token_ids=_ids(choice.get("prompt_token_ids", answer.get("prompt_token_ids"))),
    )


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """One was asked for; of several, the one with the lowest index."""
    listed = answer.get("choices")
    if not isinstance(listed, list):
        raise BadReplyError("bad_reply", f"the reply has no choices, only {sorted(answer)[:8]}")
    choices = [_mapping(item) for item in cast("list[object]", listed)]
    if not choices:
        raise BadReplyError("bad_reply", "the reply's choices are empty")
    return min(choices, key=lambda choice: _count(choice.get("index")) or 0)


def _content(choice: Mapping[str, Any]) -> tuple[str, str]:
    """(answer as sent, reasoning in a field of its own)."""
    message = _mapping(choice.get("message"))
    content = message.get("content", choice.get("text"))
    if isinstance(content, list):  # a list of parts, as some gateways send it
        parts = [_mapping(part) for part in cast("list[object]", content)]
        content = "".join(_text(part.get("text")) or "" for part in parts)
    reasoning = next((r for f in _REASONING_FIELDS if (r := _text(message.get(f)))), "")
    if isinstance(content, str) and (content or reasoning or choice.get("finish_reason")):
        return content, reasoning
    if content is None and reasoning:
        return "", reasoning
    refusal = _text(message.get("refusal"))
    if refusal:
        raise BadReplyError("no_text", f"the server refused: {_short(refusal)}")
    raise BadReplyError(
        "no_text",
        f"the choice holds no text: content {_short(content)}, "
        f"finish_reason {choice.get('finish_reason')!r}",
    )


def _not_json(body: bytes, content_type: str, error: Exception) -> str:
    if not body:
        return "the reply is empty"
    start = body[:80].decode("utf-8", "replace")
    return f"the reply is no JSON ({error}): {content_type or 'no content type'}, begins {start!r}"


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ids(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    ids = cast("Sequence[object]", value)
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
        return None
    return tuple(cast("Sequence[int]", ids))


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        value = cast("Mapping[str, object]", value).get("message", cast("object", value))
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."

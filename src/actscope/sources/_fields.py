"""From a row with named fields to an example."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from actscope.core.errors import SourceError
from actscope.core.text import Example, Message
from actscope.sources._files import parse_json

__all__ = ["Fields"]

_USUAL_TEXT = ("text", "prompt", "question", "content", "input", "sentence", "document", "body")
_USUAL_ID = ("id", "uid", "key", "index", "name", "question_id", "prompt_id")


@dataclass(frozen=True)
class Fields:
    """Which fields of a row mean what.

    A field that was named must be on every row. By default a row has ``messages``, else
    ``token_ids``, else ``text``; its ``id`` may be missing and is the row's index then.

    Attributes:
        text: Name of the text field, or None for ``text``.
        id: Name of the id field, or None for ``id`` where there is one.
        messages: Name of the field with a conversation, or None for ``messages``.
    """

    text: str | None = None
    id: str | None = None
    messages: str | None = None

    def example(self, index: int, row: Mapping[str, Any], where: str) -> Example:
        """The example of one row; fields that are not used become metadata.

        Args:
            index: The row's place in the dataset.
            row: Its fields.
            where: What to call it in an error, such as ``a.jsonl, line 3 (row 2)``.

        Raises:
            SourceError: a field is missing or holds the wrong kind of value.
        """
        id_field, identity = self._identity(index, row, where)
        kind, field = self._content_field(row, where)
        value = row[field]
        rest = {k: v for k, v in row.items() if k not in (id_field, field)}
        if kind == "messages":
            return Example(identity, messages=_messages(value, field, where), metadata=rest)
        if kind == "token_ids":
            return Example(identity, token_ids=_token_ids(value, field, where), metadata=rest)
        if not isinstance(value, str):
            raise SourceError(
                f"{where}: the field {field!r} is not text",
                got=f"{type(value).__name__} {value!r:.60}",
            )
        return Example(identity, text=value, metadata=rest)

    def _identity(self, index: int, row: Mapping[str, Any], where: str) -> tuple[str, str]:
        field = self.id or "id"
        value = row.get(field)
        if value is None or value == "":
            if self.id is not None:
                raise _missing(where, field, row, "id_field", _USUAL_ID)
            return field, str(index)
        if not isinstance(value, (str, int, float)):
            raise SourceError(f"{where}: the id must be a text or a number", got=f"{value!r:.60}")
        return field, str(value)

    def _content_field(self, row: Mapping[str, Any], where: str) -> tuple[str, str]:
        if self.text is not None:
            if row.get(self.text) is None:
                raise _missing(where, self.text, row, "text_field", _USUAL_TEXT)
            return "text", self.text
        if self.messages is not None:
            if row.get(self.messages) is None:
                raise _missing(where, self.messages, row, "messages_field", ("messages",))
            return "messages", self.messages
        for name in ("messages", "token_ids"):
            if row.get(name) not in (None, ""):
                return name, name
        if row.get("text") is not None:
            return "text", "text"
        raise _missing(where, "text", row, "text_field", _USUAL_TEXT)


def _missing(
    where: str, field: str, row: Mapping[str, Any], option: str, usual: Iterable[str]
) -> SourceError:
    """The error about a missing field: what the row has, and the likeliest one."""
    present = [name for name, value in row.items() if value is not None and name != field]
    close = difflib.get_close_matches(field, present, n=1, cutoff=0.5)
    close = close or [name for name in usual if name in present]
    flag = "--" + option.replace("_", "-")
    hint = (
        f"did you mean {option}={close[0]!r} ({flag} {close[0]})?"
        if close
        else f"name the field with {option}= ({flag})"
    )
    what = "is empty" if field in row else "does not exist"
    fields = ", ".join(repr(name) for name in row) or "none"
    return SourceError(
        f"{where}: the field {field!r} {what}", got=f"fields {fields}", next_step=hint
    )


def _messages(value: Any, field: str, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):  # a conversation in a CSV cell
        value = parse_json(value, f"{where}: the field {field!r}")
    turns: list[Message] = []
    for turn in cast("list[Any]", value) if isinstance(value, list) else []:
        role = turn.get("role") if isinstance(turn, Mapping) else None
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str):
            turns = []
            break
        turns.append(Message(role, content))
    if not turns:
        raise SourceError(
            f"{where}: the field {field!r} is not a conversation",
            got=f"{value!r:.80}",
            expected='[{"role": "user", "content": "..."}, ...], all of it text',
        )
    return tuple(turns)


def _token_ids(value: Any, field: str, where: str) -> tuple[int, ...]:
    if isinstance(value, str):
        value = parse_json(value, f"{where}: the field {field!r}")
    ids = cast("list[Any]", value) if isinstance(value, list) else []
    if not ids or not all(isinstance(x, int) and not isinstance(x, bool) for x in ids):
        raise SourceError(
            f"{where}: the field {field!r} is not a list of whole numbers", got=f"{value!r:.80}"
        )
    return tuple(ids)

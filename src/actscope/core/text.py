"""What goes in: examples, messages, and which of their tokens to keep."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from actscope.core.errors import BadInputError, UnknownNameError

__all__ = [
    "PHASE_NAMES",
    "PROMPT",
    "RESPONSE",
    "SPAN_KINDS",
    "THINK",
    "Example",
    "Message",
    "Span",
    "as_examples",
]

PROMPT = 0
RESPONSE = 1
THINK = 2
PHASE_NAMES = ("prompt", "response", "think")
"""What a token is part of, by number: the prompt, the answer, or the reasoning before it."""

SPAN_KINDS = (
    "all", "prompt", "response", "think", "answer", "system", "user", "assistant",
    "last:K", "START:END", "match:REGEX",
)  # fmt: skip
_NAMED = ("all", "prompt", "response", "think", "answer", "system", "user", "assistant")
_SPECIAL = "-special"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One prompt. Exactly one of ``text``, ``token_ids`` and ``messages`` is given.

    Attributes:
        id: Unique within its dataset.
        text: Plain text.
        token_ids: Ready token ids; no tokenizer is used then, nothing is added.
        messages: A conversation for the model's chat template.
        metadata: Anything JSON that should travel with the example.
    """

    id: str
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        given = [x for x in (self.text, self.token_ids, self.messages) if x is not None]
        if len(given) != 1:
            raise BadInputError(
                f"example {self.id!r} needs exactly one of text, token_ids and messages",
                got=f"{len(given)} of them",
            )


@dataclass(frozen=True)
class Span:
    """Which tokens of an example are kept.

    ``all``; ``prompt``, ``response`` (the answer) and ``think`` (the reasoning before it);
    ``answer`` (the last token of the prompt: its logits answer); ``system``, ``user`` and
    ``assistant`` (the content of those turns of a conversation); ``last:k``; ``start:end`` (half
    open, negative counts from the end, either side may be missing); ``match:regex`` (tokens that
    spell a character of a match). ``exclude_special`` then drops the tokenizer's special tokens
    (BOS, EOS, template marks).
    """

    kind: str = "all"
    start: int | None = None
    end: int | None = None
    exclude_special: bool = False
    pattern: str = ""

    @classmethod
    def parse(cls, text: str | Span, *, exclude_special: bool = False) -> Span:
        """Read ``user``, ``last:4``, ``2:-1``, ``match:Par[a-z]+`` or what ``str`` made of a span.

        Raises:
            UnknownNameError: none of these.
            BadInputError: an expression that is none, or a span that can never keep a token.
        """
        if isinstance(text, Span):
            return text
        if not isinstance(cast("object", text), str):
            raise UnknownNameError("span", repr(text), SPAN_KINDS)
        if text.startswith((_SPECIAL + ":match:", "match:")):
            marks, _, pattern = text.partition("match:")
            return _matching(pattern, exclude_special=exclude_special or bool(marks))
        text = text.strip()
        if text.endswith(_SPECIAL):
            return cls.parse(text.removesuffix(_SPECIAL), exclude_special=True)
        if text in _NAMED:
            return cls(text, exclude_special=exclude_special)
        last = re.fullmatch(r"last:(\d+)", text)
        if last:
            if int(last[1]) < 1:
                raise BadInputError("span last:K keeps at least one token", got=text)
            return cls("last", start=int(last[1]), exclude_special=exclude_special)
        sliced = re.fullmatch(r"\[?(-?\d+)?:(-?\d+)?[)\]]?", text)
        if sliced:
            start, end = (None if x is None else int(x) for x in sliced.groups())
            return cls("range", start, end, exclude_special)
        raise UnknownNameError("span", text, SPAN_KINDS)

    @property
    def needs_text(self) -> bool:
        """Whether it can be cut only where one knows what each token spells."""
        return self.kind in ("system", "user", "assistant", "match")

    def __str__(self) -> str:
        if self.kind == "match":  # the expression may end in anything: the mark goes in front
            return f"{_SPECIAL + ':' if self.exclude_special else ''}match:{self.pattern}"
        if self.kind == "last":
            base = f"last:{self.start}"
        elif self.kind == "range":
            start = "" if self.start is None else self.start
            end = "" if self.end is None else self.end
            base = f"{start}:{end}"
        else:
            base = self.kind
        return base + (_SPECIAL if self.exclude_special else "")


def _matching(pattern: str, *, exclude_special: bool) -> Span:
    try:
        re.compile(pattern)
    except re.error as error:
        raise BadInputError(
            f"span match:REGEX: {error}", got=pattern, next_step="mend the expression, or escape it"
        ) from None
    if not pattern:
        raise BadInputError(
            "span match:REGEX needs an expression", got="match:", expected="for example match:Paris"
        )
    return Span("match", exclude_special=exclude_special, pattern=pattern)


def as_examples(inputs: object) -> list[Example]:
    """Turn what a user passes to ``capture`` into examples.

    Accepts an iterable of texts, of token id lists, of ``Example``, of ``Message`` lists, or of
    dictionaries with ``text`` (or ``messages``, or ``token_ids``), optionally ``id``; the other
    keys become metadata. A single string is one example. Missing ids are the position.

    Raises:
        BadInputError: anything else, or two examples with one id.
    """
    if isinstance(inputs, (str, Example, Mapping)):
        inputs = [inputs]
    try:
        items = list(cast("Sequence[object]", inputs))
    except TypeError:
        raise BadInputError(
            "inputs must be texts, token id lists or examples", got=type(inputs).__name__
        ) from None
    examples = [_as_example(index, item) for index, item in enumerate(items)]
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise BadInputError(
                "two examples have the same id", got=repr(example.id), next_step="make ids unique"
            )
        seen.add(example.id)
    return examples


def _as_example(index: int, item: object) -> Example:
    if isinstance(item, Example):
        return item
    if isinstance(item, str):
        return Example(str(index), text=item)
    if isinstance(item, Mapping):
        return _from_mapping(index, cast("Mapping[str, Any]", item))
    try:
        values = list(cast("Sequence[Any]", item))
    except TypeError:
        raise BadInputError(
            f"example {index} is neither a text, token ids, messages nor a dictionary",
            got=type(item).__name__,
        ) from None
    if values and all(isinstance(value, Message) for value in values):
        return Example(str(index), messages=tuple(values))
    try:
        return Example(str(index), token_ids=tuple(_whole(value) for value in values))
    except (TypeError, ValueError):
        raise BadInputError(
            f"example {index} is a list of neither token ids nor messages", got=repr(values[:3])
        ) from None


def _whole(value: Any) -> int:
    """A whole number of any library; 1.5 is none."""
    number = operator.index(value)
    if isinstance(value, bool):
        raise TypeError("a truth value is no token id")
    return number


def _from_mapping(index: int, item: Mapping[str, Any]) -> Example:
    rest = {k: v for k, v in item.items() if k not in ("id", "text", "token_ids", "messages")}
    identity = str(item.get("id", index))
    if item.get("messages") is not None:
        turns = tuple(Message(str(m["role"]), str(m["content"])) for m in item["messages"])
        return Example(identity, messages=turns, metadata=rest)
    if item.get("token_ids") is not None:
        try:
            ids = tuple(_whole(x) for x in item["token_ids"])
        except (TypeError, ValueError):
            raise BadInputError(
                f"example {identity!r} has token_ids that are no whole numbers",
                got=repr(item["token_ids"])[:60],
            ) from None
        return Example(identity, token_ids=ids, metadata=rest)
    if not isinstance(item.get("text"), str):
        raise BadInputError(
            f"example {identity!r} has no text", got=f"keys {sorted(item)}", expected="a text key"
        )
    return Example(identity, text=item["text"], metadata=rest)

"""Choose examples or runs by what is known of them: a small language, never run as code.

    category == 'refusal' and n_tokens > 8
    not correct or model in ['a', 'b']
    metadata['my field'] != null and 'ferry' in text

Names are the fields of an example's record (id, index, n_tokens, n_prompt_tokens, text, response,
thought, note), else of its metadata; ``metadata.NAME`` is always the latter, dots go into nested
metadata. Of a run they are those of ``RUNS``, else of its spec: ``spec.model.dtype``, ``span``.
``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in``, ``not in``, ``and``, ``or``, ``not``
and parentheses mean what they mean in Python. A field that is not there is null, which equals
null, is in nothing and is neither smaller nor larger than anything.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from actscope.core.errors import BadInputError, UnknownNameError

__all__ = ["EXAMPLES", "RUNS", "Subject", "Where"]


@dataclass(frozen=True)
class Subject:
    """What conditions are about.

    Attributes:
        noun: What several of them are called.
        fields: Attributes that a condition may name.
        rest: The attribute that holds everything else, nested.
        instance: A condition, to learn from.
    """

    noun: str
    fields: tuple[str, ...]
    rest: str
    instance: str


EXAMPLES = Subject(
    "examples",
    ("id", "index", "n_tokens", "n_prompt_tokens", "text", "response", "thought", "note"),
    "metadata",
    "category == 'refusal' and n_tokens > 8",
)
RUNS = Subject(
    "runs",
    ("name", "state", "store", "fingerprint", "model", "created", "tags", "n_units",
     "n_planned", "n_examples", "n_failures", "bytes"),
    "spec",
    "model == 'demo' and state == 'complete' and 'baseline' in tags",
)  # fmt: skip

_WORDS = {"null": None, "none": None, "true": True, "false": False}
_LONGEST = 10_000
_Value = Callable[[Any], Any]


@dataclass(frozen=True)
class Where:
    """A condition on examples, or on runs.

    Attributes:
        text: As it was written.
        names: What it asks for: fields, or paths into what holds the rest.
        about: What it is a condition on.
    """

    text: str
    names: frozenset[tuple[str, ...]]
    about: Subject
    _test: _Value

    @classmethod
    def parse(cls, text: str, about: Subject = EXAMPLES) -> Where:
        """Read a condition.

        Raises:
            BadInputError: it is none, with the place.
        """
        if len(text) > _LONGEST:
            raise BadInputError(
                "the condition is too long", got=f"{len(text)} characters", expected=_LONGEST
            )
        try:
            reader = _Reader(text, about)
            test = reader.read(ast.parse(text.strip(), mode="eval").body)
        except BadInputError:
            raise
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise _not_a_condition(text, getattr(error, "msg", "") or str(error), about) from error
        if not reader.names:
            raise _not_a_condition(text, "it asks for no field", about)
        return cls(text, frozenset(reader.names), about, test)

    def matches(self, record: object) -> bool:
        """Whether an example or a run meets it.

        Raises:
            BadInputError: two values that have no order are compared, with both.
        """
        try:
            return bool(self._test(record))
        except RecursionError as error:
            raise _not_a_condition(self.text, "it is too deep", self.about) from error

    def check(self, records: Iterable[object]) -> None:
        """Refuse a name that nothing here has: it would choose nothing, silently.

        Raises:
            UnknownNameError: such a name.
        """
        about = self.about
        missing = set(self.names)
        known: set[str] = set(about.fields)
        seen = False
        for record in records:
            seen = True
            rest = cast("Mapping[str, Any]", getattr(record, about.rest))
            missing = {path for path in missing if not _has(rest, path, about)}
            if not missing:
                return
            known |= set(rest)
        if missing and seen:  # of none, nobody knows what they would have
            raise UnknownNameError(
                f"field of the {about.noun}", ".".join(min(missing)), sorted(known)
            )


class _Reader:
    """From a syntax tree to a function of a record."""

    def __init__(self, text: str, about: Subject) -> None:
        self._text = text
        self._about = about
        self.names: set[tuple[str, ...]] = set()

    def read(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.BoolOp):
            parts = [self.read(part) for part in node.values]
            every = isinstance(node.op, ast.And)
            return lambda r: (all if every else any)(bool(part(r)) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.read(node.operand)
            return lambda r: not inner(r)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            return self._field(node)
        return self._constant(node)

    def _compare(self, node: ast.Compare) -> _Value:
        operands = [self.read(part) for part in (node.left, *node.comparators)]
        for op in node.ops:
            if type(op) not in _COMPARE:
                raise self._refused(f"{type(op).__name__} is no comparison here")
        steps = list(zip(node.ops, operands, operands[1:], strict=False))

        def test(record: object) -> bool:
            return all(_COMPARE[type(op)](a(record), b(record)) for op, a, b in steps)

        return test

    def _field(self, node: ast.expr) -> _Value:
        path = self._path(node)
        first, inner = path[0], path[1:]
        if not inner and first.lower() in _WORDS:
            value = _WORDS[first.lower()]
            return lambda _: value
        self.names.add(path)
        rest = self._about.rest
        if first == rest and inner:
            return lambda r: _inside(getattr(r, rest), inner)
        if first in self._about.fields:
            if inner:
                raise self._refused(f"{first} has no fields of its own")
            return lambda r: _as_json(getattr(r, first))
        return lambda r: _inside(getattr(r, rest), path)

    def _refused(self, reason: str) -> BadInputError:
        return _not_a_condition(self._text, reason, self._about)

    def _path(self, node: ast.expr) -> tuple[str, *tuple[str, ...]]:
        if isinstance(node, ast.Name):
            return (node.id,)
        if isinstance(node, ast.Attribute):
            return (*self._path(node.value), node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            return (*self._path(node.value), str(node.slice.value))
        raise self._refused(f"{ast.unparse(node)[:40]!r} is no field")

    def _constant(self, node: ast.expr) -> _Value:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            what = ast.unparse(node)[:40]
            raise self._refused(f"{what!r} is neither a field nor a text, number or list") from None
        if value is not None and not isinstance(value, (str, int, float, list, tuple)):
            raise self._refused(f"{value!r} is no text, number or list")
        return lambda _: cast("object", value)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(a: Any, b: Any) -> bool:
        if a is None or b is None:
            return False
        try:
            return bool(compare(a, b))
        except TypeError:
            raise BadInputError(
                "two values of a condition have no order", got=f"{a!r:.40} and {b!r:.40}"
            ) from None

    return test


def _is_in(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return False
    try:
        return a in b
    except TypeError:
        raise BadInputError(
            "`in` looks into a text or a list", got=f"{a!r:.40} in {b!r:.40}"
        ) from None


_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: bool(a == b),
    ast.NotEq: lambda a, b: bool(a != b),
    ast.Lt: _ordered(lambda a, b: a < b),
    ast.LtE: _ordered(lambda a, b: a <= b),
    ast.Gt: _ordered(lambda a, b: a > b),
    ast.GtE: _ordered(lambda a, b: a >= b),
    ast.In: _is_in,
    ast.NotIn: lambda a, b: not _is_in(a, b),
}


def _as_json(value: Any) -> Any:
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _inside(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = cast("Mapping[str, Any]", value)[name]
    return value


def _has(rest: Mapping[str, Any], path: tuple[str, ...], about: Subject) -> bool:
    if path[0] in about.fields:
        return True
    value: Any = rest
    for name in path[1:] if path[0] == about.rest else path:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = cast("Mapping[str, Any]", value)[name]
    return True


def _not_a_condition(text: str, reason: str, about: Subject) -> BadInputError:
    return BadInputError(
        f"{text!r:.80} is no condition on {about.noun}",
        got=reason,
        expected="fields, texts, numbers and lists with == != < <= > >= in, and, or, not",
        next_step=f"for example: {about.instance}",
    )

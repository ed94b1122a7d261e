"""Multiple-choice questions: a right answer and three wrong ones.

Rows are our own, or as MMLU and TriviaQA write them; see ``_question_rows``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from actscope.core.errors import BadInputError, SourceError
from actscope.core.text import Example
from actscope.sources._memory import InMemory
from actscope.sources._question_rows import QUESTION_SHAPES, rows_of

__all__ = ["LETTERS", "SOURCE", "MCQSource", "Question", "option_order", "read_questions"]

LETTERS = "ABCD"
INSTRUCTION = "Answer with one letter."
_SHAPE = QUESTION_SHAPES[0]


@dataclass(frozen=True)
class Question:
    """A question with one right answer.

    Attributes:
        id: Unique within its file.
        question: The question alone.
        correct: The right answer.
        distractors: Three wrong ones.
        metadata: The row's other fields, such as ``subject``.
    """

    id: str
    question: str
    correct: str
    distractors: tuple[str, str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def options(self, seed: int = 0) -> dict[str, str]:
        """The four answers by letter, in the order of this seed and the question's id."""
        answers = (self.correct, *self.distractors)
        order = option_order(self.id, len(answers), seed)
        return {letter: answers[i] for letter, i in zip(LETTERS, order, strict=True)}

    def correct_letter(self, seed: int = 0) -> str:
        """The letter of the right answer in that order."""
        return LETTERS[option_order(self.id, len(LETTERS), seed).index(0)]


def option_order(identity: str, count: int, seed: int = 0) -> list[int]:
    """A permutation of ``range(count)`` that depends on the seed and the id alone.

    It is the same in every process and on every machine, so that two runs over one file show the
    same options and can be joined by id.
    """

    def rank(place: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{identity}\0{place}".encode()).digest()

    return sorted(range(count), key=rank)


class MCQSource(InMemory):
    """Each question as a prompt that reads options, question, instruction.

    Metadata holds ``question``, ``options`` by letter, ``correct_answer_letter`` and the row's
    other fields.

    Args:
        path: A file of questions, see ``read_questions``.
        seed: Decides the order of the options, together with each question's id.
        instruction: Last line of the prompt.

    Raises:
        SourceError: there is no such file, or a row has another shape.
        BadInputError: the seed is no whole number, or the instruction is empty.
    """

    def __init__(self, path: str | Path, *, seed: int = 0, instruction: str = INSTRUCTION) -> None:
        if isinstance(seed, bool) or not str(seed).removeprefix("-").isdigit():
            raise BadInputError("the seed of the options is a whole number", got=repr(seed))
        questions = read_questions(path)
        super().__init__([_example(q, int(seed), instruction) for q in questions], str(path))


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a file or of a dataset on the hub, in order.

    A row is ``{id, question, correct, distractors: [three]}``; or MMLU's ``{question, choices:
    [four], answer}`` with the answer's place or letter; or ``{question, answer, distractors}`` with
    at least three distractors, of which the question's id picks three. A row without an id is
    called by its place.

    Args:
        path: A file ``.jsonl``, ``.json`` (a list) or ``.parquet``; or ``hf:OWNER/NAME``,
            ``hf:OWNER/NAME:CONFIG:SPLIT``.

    Raises:
        SourceError: there is no such file, or a row is not a question: a field is missing or empty,
            there are fewer than three distractors, or one of them repeats another answer.
    """
    found = [_question(row, where) for where, row in rows_of(path)]
    rows: dict[str, int] = {}
    for row, question in enumerate(found):
        first = rows.setdefault(question.id, row)
        if first != row:
            raise SourceError(
                f"{path}: rows {first} and {row} have the same id",
                got=question.id,
                next_step="make the ids unique",
            )
    return found


def _question(row: dict[str, Any], where: str) -> Question:
    made = [name for name in ("options", "correct_answer_letter") if name in row]
    if made:
        raise SourceError(
            f"{where}: {' and '.join(made)} would be overwritten by the order of the options",
            next_step="give `correct` and `distractors` alone, and name other fields otherwise",
        )
    identity = _text(row.pop("id", None), "id", where)
    question = _text(row.pop("question", None), "question", where)
    correct = _text(row.pop("correct", None), "correct", where)
    wrong = row.pop("distractors", None)
    return Question(identity, question, correct, _distractors(wrong, correct, where), row)


def _text(value: Any, name: str, where: str) -> str:
    text = _as_text(value)
    if not text.strip():
        raise SourceError(
            f"{where}: the field {name!r} is missing or empty",
            got=f"{value!r}",
            expected=_SHAPE,
            next_step="rename the field that holds it, or fill it",
        )
    return text


def _distractors(value: Any, correct: str, where: str) -> tuple[str, str, str]:
    wrong = [_as_text(x) for x in cast("Sequence[Any]", value)] if isinstance(value, list) else []
    if len(wrong) != len(LETTERS) - 1 or not all(x.strip() for x in wrong):
        raise SourceError(
            f"{where}: a question needs three distractors",
            got=f"{value!r:.80}",
            expected=_SHAPE,
            next_step="give three wrong answers, none of them empty",
        )
    if any("\n" in x for x in (correct, *wrong)):
        raise SourceError(f"{where}: an answer has a line break", got=f"{value!r:.80}")
    if len({x.strip() for x in (correct, *wrong)}) != len(LETTERS):
        raise SourceError(
            f"{where}: an answer is there twice",
            got=f"{correct!r} and {', '.join(map(repr, wrong))}",
            next_step="make the four answers different",
        )
    return wrong[0], wrong[1], wrong[2]


def _as_text(value: Any) -> str:
    """Text, or a number as text; nothing else is an answer."""
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return str(value) if plain else ""


def _example(question: Question, seed: int, instruction: str) -> Example:
    options = question.options(seed)
    if not instruction.strip():
        raise BadInputError("the instruction of a multiple-choice prompt is empty")
    listed = "\n".join(f"{letter}) {answer}" for letter, answer in options.items())
    metadata = {
        **question.metadata,
        "question": question.question,
        "options": options,
        "correct_answer_letter": question.correct_letter(seed),
    }
    text = f"{listed}\n{question.question}\n{instruction}"
    return Example(question.id, text=text, metadata=metadata)


SOURCE = MCQSource
